#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include <onnxruntime_cxx_api.h>
#include <opencv2/core.hpp>

#include "palette_png.h"

using Error = std::runtime_error;  // its text is shown as one line

// A model.onnx of export.py with any --output, with or without --with_preprocessing.
class Model {
public:
    // provider: cpu, cuda or tensorrt. Error if the file or the provider is not there.
    Model(const std::filesystem::path& path, const std::string& provider);

    // 8 bit BGR -> 8 bit train ids of the same size. Error if the model takes another size only.
    cv::Mat segment(const cv::Mat& image);

    std::array<Color, 256> palette{};

private:
    std::vector<float> normalise(const cv::Mat& rgb) const;

    Ort::Env environment_{ORT_LOGGING_LEVEL_ERROR, "segment"};
    Ort::Session session_{nullptr};
    std::string input_, output_;
    std::vector<std::int64_t> shape_;  // of the input: (H, W, 3) or (1, 3, H, W); below 1: any
    std::vector<double> mean_, std_;
    bool normalised_ = false;          // the input is float32 and normalised
};
