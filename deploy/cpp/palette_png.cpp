#include "palette_png.h"

#include <cstddef>

#include <opencv2/imgcodecs.hpp>

namespace {

constexpr std::size_t header_end = 8 + 4 + 4 + 13;  // signature; length, type and content of the chunk IHDR
constexpr std::size_t color_type = 8 + 4 + 4 + 9;   // after width, height and bit depth

// The checksum of PNG's chunks: CRC-32 of type and content.
std::uint32_t crc(const std::uint8_t* data, std::size_t size) {
    std::uint32_t value = 0xffffffffu;
    for (std::size_t i = 0; i < size; ++i) {
        value ^= data[i];
        for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
    }
    return ~value;
}

std::array<std::uint8_t, 4> big_endian(std::size_t value) {
    return {std::uint8_t(value >> 24), std::uint8_t(value >> 16), std::uint8_t(value >> 8), std::uint8_t(value)};
}

}  // namespace

std::vector<std::uint8_t> palette_png(const cv::Mat& indices, const std::array<Color, 256>& palette) {
    // Grey values and indices are stored alike: what differs is the header's colour type, and the chunk PLTE after it.
    std::vector<std::uint8_t> png;
    cv::imencode(".png", indices, png);
    png[color_type] = 3;
    const auto checksum = big_endian(crc(&png[12], 4 + 13));
    std::copy(checksum.begin(), checksum.end(), png.begin() + header_end);

    std::vector<std::uint8_t> chunk{'P', 'L', 'T', 'E'};
    for (const Color& color : palette) chunk.insert(chunk.end(), color.begin(), color.end());
    const auto end = big_endian(crc(chunk.data(), chunk.size()));
    const auto length = big_endian(chunk.size() - 4);
    chunk.insert(chunk.end(), end.begin(), end.end());
    chunk.insert(chunk.begin(), length.begin(), length.end());
    png.insert(png.begin() + header_end + 4, chunk.begin(), chunk.end());
    return png;
}
