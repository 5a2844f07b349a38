#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include <opencv2/core.hpp>

using Color = std::array<std::uint8_t, 3>;  // R, G, B

// PNG bytes of 8 bit indices (rows x cols) with a palette of 256 colours, which OpenCV itself cannot write.
std::vector<std::uint8_t> palette_png(const cv::Mat& indices, const std::array<Color, 256>& palette);
