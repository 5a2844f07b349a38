#include "model.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

#include <opencv2/imgproc.hpp>

namespace {

// The numbers in a JSON list, nested or not.
std::vector<double> numbers(const std::string& json) {
    std::vector<double> values;
    for (const char* at = json.c_str(); *at;) {
        char* end = nullptr;
        const double value = std::strtod(at, &end);
        if (end != at) values.push_back(value);
        at = end != at ? end : at + 1;
    }
    return values;
}

std::string text(std::int64_t height, std::int64_t width) {
    const auto side = [](std::int64_t value) { return value > 0 ? std::to_string(value) : std::string("any"); };
    return side(height) + "x" + side(width);
}

void add_tensorrt(Ort::SessionOptions& options) {
    const OrtApi& api = Ort::GetApi();
    OrtTensorRTProviderOptionsV2* chosen = nullptr;
    Ort::ThrowOnError(api.CreateTensorRTProviderOptions(&chosen));
    const std::unique_ptr<OrtTensorRTProviderOptionsV2, decltype(api.ReleaseTensorRTProviderOptions)> owner(
        chosen, api.ReleaseTensorRTProviderOptions);
    options.AppendExecutionProvider_TensorRT_V2(*chosen);
}

void add_cuda(Ort::SessionOptions& options) {
    const OrtApi& api = Ort::GetApi();
    OrtCUDAProviderOptionsV2* chosen = nullptr;
    Ort::ThrowOnError(api.CreateCUDAProviderOptions(&chosen));
    const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(api.ReleaseCUDAProviderOptions)> owner(
        chosen, api.ReleaseCUDAProviderOptions);
    const char *keys[] = {"use_tf32"}, *values[] = {"0"};  // TF32, the default, has 10 bits of mantissa
    Ort::ThrowOnError(api.UpdateCUDAProviderOptions(chosen, keys, values, 1));
    options.AppendExecutionProvider_CUDA_V2(*chosen);
}

void add_provider(Ort::SessionOptions& options, const std::string& provider) {
    if (provider != "cpu" && provider != "cuda" && provider != "tensorrt")
        throw Error("--provider " + provider + ": expected cpu, cuda or tensorrt");
    try {
        if (provider == "tensorrt") add_tensorrt(options);
        if (provider != "cpu") add_cuda(options);  // for what TensorRT leaves, too
    } catch (const Ort::Exception& error) {
        throw Error("--provider " + provider + ": expected an ONNX Runtime that has it, found: " + error.what() +
                    "; build with ONNX Runtime's GPU archive and install what that needs, or leave --provider out");
    }
}

// The first class with the highest of `classes` planes of values.
void highest(const float* values, std::size_t classes, cv::Mat& ids) {
    const std::size_t pixels = ids.total();
    std::vector<float> best(values, values + pixels);
    ids.setTo(0);
    for (std::size_t k = 1; k < classes; ++k)
        for (std::size_t i = 0; i < pixels; ++i)
            if (values[k * pixels + i] > best[i]) {
                best[i] = values[k * pixels + i];
                ids.data[i] = std::uint8_t(k);
            }
}

}  // namespace

Model::Model(const std::filesystem::path& path, const std::string& provider) {
    const std::string flag = "--model " + path.u8string();
    Ort::SessionOptions options;
    add_provider(options, provider);
    try {
        session_ = Ort::Session(environment_, path.c_str(), options);
    } catch (const Ort::Exception& error) {
        throw Error(flag + ": expected a model.onnx of export.py, found: " + error.what());
    }
    Ort::AllocatorWithDefaultOptions allocator;
    input_ = session_.GetInputNameAllocated(0, allocator).get();
    output_ = session_.GetOutputNameAllocated(0, allocator).get();
    const auto info = session_.GetInputTypeInfo(0);
    shape_ = info.GetTensorTypeAndShapeInfo().GetShape();
    normalised_ = info.GetTensorTypeAndShapeInfo().GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;

    const auto metadata = session_.GetModelMetadata();
    const auto look_up = [&](const char* key) {
        const auto value = metadata.LookupCustomMetadataMapAllocated(key, allocator);
        return numbers(value ? value.get() : "");
    };
    const std::vector<double> colors = look_up("palette");
    if (colors.empty() || colors.size() % 3 || colors.size() > 3 * palette.size())
        throw Error(flag + ": expected the metadata of export.py, found none; export it again");
    for (std::size_t i = 0; i < colors.size(); ++i) palette[i / 3][i % 3] = std::uint8_t(colors[i]);
    mean_ = look_up("mean");
    std_ = look_up("std");
    if (normalised_ && (mean_.size() != 3 || std_.size() != 3))
        throw Error(flag + ": expected a model with mean and std; export it with --with_preprocessing");
}

cv::Mat Model::segment(const cv::Mat& image) {
    const std::int64_t height = image.rows, width = image.cols;
    const std::int64_t* side = &shape_[shape_.size() == 3 ? 0 : 2];
    if ((side[0] > 0 && side[0] != height) || (side[1] > 0 && side[1] != width))
        throw Error("expected an image of " + text(side[0], side[1]) + " (H x W) for this model, found " +
                    text(height, width) + "; resize it, or export with --input_shape any");
    cv::Mat rgb;
    cv::cvtColor(image, rgb, cv::COLOR_BGR2RGB);
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<float> planes;
    Ort::Value input{nullptr};
    if (normalised_) {
        planes = normalise(rgb);
        const std::int64_t size[] = {1, 3, height, width};
        input = Ort::Value::CreateTensor<float>(memory, planes.data(), planes.size(), size, 4);
    } else {
        const std::int64_t size[] = {height, width, 3};
        input = Ort::Value::CreateTensor<std::uint8_t>(memory, rgb.data, rgb.total() * 3, size, 3);
    }
    const char *inputs[] = {input_.c_str()}, *outputs[] = {output_.c_str()};
    const auto results = session_.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 1);
    const auto found = results[0].GetTensorTypeAndShapeInfo();
    cv::Mat ids(image.rows, image.cols, CV_8U);
    if (found.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
        std::copy_n(results[0].GetTensorData<std::uint8_t>(), ids.total(), ids.data);
    else
        highest(results[0].GetTensorData<float>(), found.GetElementCount() / ids.total(), ids);
    return ids;
}

// 8 bit RGB -> (3, H, W). Mean and std are doubles that meet floats, as in the validation's transforms.
std::vector<float> Model::normalise(const cv::Mat& rgb) const {
    const std::size_t pixels = rgb.total();
    std::vector<float> planes(3 * pixels);
    for (std::size_t c = 0; c < 3; ++c) {
        std::array<float, 256> table;
        for (std::size_t value = 0; value < table.size(); ++value)
            table[value] = float(double(float(double(float(value) / 255.0f) - mean_[c])) / std_[c]);
        for (std::size_t i = 0; i < pixels; ++i) planes[c * pixels + i] = table[rgb.data[3 * i + c]];
    }
    return planes;
}
