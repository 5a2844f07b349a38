// Segment an image or a folder with a model.onnx of export.py: ONNX Runtime computes, OpenCV reads and writes.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

#include "model.h"
#include "palette_png.h"

namespace fs = std::filesystem;

namespace {

const char* const usage =
    "usage: segment --model MODEL.onnx --image_path IMAGE_OR_FOLDER [--save_dir output/result]\n"
    "               [--provider cpu|cuda|tensorrt]\n"
    "Writes train ids as palette PNGs into pseudo_color_prediction and overlays into added_prediction of --save_dir.\n";

struct Options {
    fs::path model, images, save_dir = fs::path("output") / "result";
    std::string provider = "cpu";
};

Options parse(const std::vector<std::string>& arguments) {
    std::map<std::string, std::string> found{{"--model", ""}, {"--image_path", ""}, {"--save_dir", ""},
                                             {"--provider", "cpu"}};
    for (std::size_t i = 0; i < arguments.size(); i += 2) {
        if (!found.count(arguments[i]))
            throw Error(arguments[i] + ": expected --model, --image_path, --save_dir or --provider; see --help");
        if (i + 1 == arguments.size()) throw Error(arguments[i] + ": expected a value after it, found none; see --help");
        found[arguments[i]] = arguments[i + 1];
    }
    for (const char* flag : {"--model", "--image_path"})
        if (found[flag].empty()) throw Error(std::string(flag) + ": expected a path, found none; see --help");
    Options options;
    options.model = fs::u8path(found["--model"]);
    options.images = fs::u8path(found["--image_path"]);
    if (!found["--save_dir"].empty()) options.save_dir = fs::u8path(found["--save_dir"]);
    options.provider = found["--provider"];
    return options;
}

bool is_image(const fs::path& path) {
    std::string suffix = path.extension().u8string();
    std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return char(std::tolower(c)); });
    for (const char* known : {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
        if (suffix == known) return true;
    return false;
}

// {image: its name below the results' folders}: a.png and a.jpg of one folder keep their suffixes.
std::map<fs::path, fs::path> find_images(const fs::path& root, const fs::path& save_dir) {
    std::map<fs::path, fs::path> found;
    if (fs::is_regular_file(root)) {
        found[root] = root.filename();
    } else if (fs::is_directory(root)) {
        for (auto at = fs::recursive_directory_iterator(root); at != fs::recursive_directory_iterator(); ++at) {
            std::error_code absent;
            if (at->is_directory() && fs::equivalent(at->path(), save_dir, absent)) at.disable_recursion_pending();
            if (at->is_regular_file() && is_image(at->path())) found[at->path()] = at->path().lexically_relative(root);
        }
    }
    if (found.empty())
        throw Error("--image_path " + root.u8string() + ": expected an image, or a folder with images (.png .jpg .jpeg "
                    ".bmp .tif .tiff .webp), found none");
    std::map<fs::path, int> uses;
    for (const auto& item : found) ++uses[fs::path(item.second).replace_extension()];
    for (auto& item : found)
        if (uses[fs::path(item.second).replace_extension()] == 1) item.second.replace_extension();
    return found;
}

// Whole or absent: written beside, then renamed.
void write(const fs::path& path, const std::vector<std::uint8_t>& bytes) {
    fs::create_directories(path.parent_path());
    const fs::path partial = fs::path(path).concat(".partial");
    std::ofstream file(partial, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
    file.close();
    if (!file) throw Error(path.u8string() + ": expected to write " + std::to_string(bytes.size()) +
                           " bytes, could not; check the folder and the disk's space");
    fs::rename(partial, path);
}

void segment(Model& model, const fs::path& path, const fs::path& save_dir, const fs::path& name) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const cv::Mat image = bytes.empty() ? cv::Mat() : cv::imdecode(bytes, cv::IMREAD_COLOR);
    if (image.empty()) throw Error("expected an image, found none that can be decoded; copy it again or leave it out");
    const cv::Mat ids = model.segment(image);
    cv::Mat colors(image.size(), CV_8UC3), overlay;
    for (std::size_t i = 0; i < ids.total(); ++i) {
        const Color& color = model.palette[ids.data[i]];
        std::copy(color.rbegin(), color.rend(), colors.data + 3 * i);
    }
    cv::addWeighted(image, 0.6, colors, 0.4, 0, overlay);
    std::vector<std::uint8_t> png;
    cv::imencode(".png", overlay, png);
    const auto file_in = [&](const char* folder) { return save_dir / folder / fs::path(name).concat(".png"); };
    write(file_in("added_prediction"), png);
    write(file_in("pseudo_color_prediction"), palette_png(ids, model.palette));
}

std::string one_line(std::string text) {
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text.substr(0, text.find_last_not_of(' ') + 1);
}

int run(const std::vector<std::string>& arguments) {
    const Options options = parse(arguments);
    if (!OrtGetApiBase()->GetApi(ORT_API_VERSION))
        throw Error("ONNX Runtime: expected version 1." + std::to_string(ORT_API_VERSION) +
                    " or later, whose headers this program was built with, found " + OrtGetApiBase()->GetVersionString());
    const auto images = find_images(options.images, options.save_dir);
    Model model(options.model, options.provider);
    std::vector<std::string> failed;
    const auto start = std::chrono::steady_clock::now();
    std::size_t done = 0;
    for (const auto& item : images) {
        try {
            segment(model, item.first, options.save_dir, item.second);
        } catch (const std::exception& error) {  // the other images are segmented all the same
            failed.push_back(item.first.u8string() + ": " + one_line(error.what()));
        }
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        ++done;
        std::fprintf(stderr, "\r%zu of %zu images, %.2f s each", done, images.size(), seconds.count() / double(done));
    }
    std::fprintf(stderr, "\nsegmented %zu of %zu images; pictures in %s\n", images.size() - failed.size(), images.size(),
                 options.save_dir.u8string().c_str());
    for (const std::string& line : failed) std::fprintf(stderr, "error: %s\n", line.c_str());
    return failed.empty() ? 0 : 1;
}

}  // namespace

int main(int count, char** values) {
    const std::vector<std::string> arguments(values + 1, values + count);
    if (std::count(arguments.begin(), arguments.end(), "--help") + std::count(arguments.begin(), arguments.end(), "-h")) {
        std::fputs(usage, stdout);
        return 0;
    }
    try {
        return run(arguments);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", one_line(error.what()).c_str());
        return 1;
    }
}
