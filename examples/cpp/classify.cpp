// Classify images with a TorchScript file of `sanet export`, by LibTorch alone.
//
//     torch=$(python -c 'import torch; print(torch.__path__[0])')    # or the folder of an unpacked LibTorch
//     g++ -std=c++20 -I$torch/include classify.cpp -o classify \
//         -L$torch/lib -ltorch -ltorch_cpu -lc10 -Wl,-rpath,$torch/lib
//     ./classify photos.torchscript IMAGE.ppm ...
//
// The file holds the names of the classes and how images are preprocessed. Images are PPM or PGM files of 8 bits, as
// Pillow and ImageMagick write them, because a decoder would be a further library.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include <ATen/ops/_upsample_bicubic2d_aa.h>
#include <ATen/ops/_upsample_bilinear2d_aa.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

using Settings = std::unordered_map<std::string, std::string>;

// Return the numbers in a JSON list, or the one number.
std::vector<double> numbers(std::string text) {
    std::replace_if(text.begin(), text.end(), [](char c) { return c == '[' || c == ']' || c == ','; }, ' ');
    std::istringstream words(text);
    std::vector<double> values;
    for (double value; words >> value;) values.push_back(value);
    return values;
}

// Append a character to text in UTF-8.
void append(std::string& text, unsigned code) {
    if (code < 0x80) {
        text += char(code);
        return;
    }
    const int rest = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3; // bytes after the first
    text += char((0xFF00 >> (rest + 1) & 0xFF) | code >> 6 * rest);
    for (int n = rest - 1; n >= 0; --n) text += char(0x80 | (code >> 6 * n & 0x3F));
}

// Return the strings in a JSON list.
std::vector<std::string> strings(const std::string& json) {
    std::vector<std::string> values;
    for (size_t at = json.find('"'); at < json.size(); at = json.find('"', at + 1)) {
        std::string& value = values.emplace_back();
        while (json.at(++at) != '"') {
            const char escaped = json[at] == '\\' ? json.at(++at) : 0;
            if (escaped == 'u') {
                unsigned code = std::stoul(json.substr(at + 1, 4), nullptr, 16);
                at += 4;
                if (code >> 10 == 0x36) { // the first half of a pair
                    code = 0x10000 + ((code & 0x3FF) << 10) + (std::stoul(json.substr(at + 3, 4), nullptr, 16) & 0x3FF);
                    at += 6;
                }
                append(value, code);
            } else {
                value += escaped == 'n' ? '\n' : escaped == 't' ? '\t' : json[at];
            }
        }
    }
    return values;
}

// Return an image of 8 bits, (1, channels, height, width).
at::Tensor read(const std::string& path, int64_t channels) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    file >> kind;
    std::vector<int64_t> header; // width, height and largest value
    while (file && header.size() < 3) {
        if ((file >> std::ws).peek() == '#') {
            std::string comment;
            std::getline(file, comment);
        } else {
            file >> header.emplace_back();
        }
    }
    if (!file || kind != (channels == 3 ? "P6" : "P5") || header[2] != 255)
        throw std::runtime_error(path + " is not a " + (channels == 3 ? "PPM (P6)" : "PGM (P5)") + " file of 8 bits");
    file.get();
    const int64_t width = header[0], height = header[1];
    std::vector<unsigned char> pixels(width * height * channels);
    if (!file.read(reinterpret_cast<char*>(pixels.data()), pixels.size()))
        throw std::runtime_error(path + " is cut off");
    return at::from_blob(pixels.data(), {1, height, width, channels}, at::kByte).permute({0, 3, 1, 2}).clone();
}

// Resize the shorter side, crop the centre and normalise.
at::Tensor preprocess(const at::Tensor& image, const Settings& settings) {
    const int64_t size = numbers(settings.at("img_size"))[0];
    const int64_t shorter = std::floor(size / numbers(settings.at("crop_pct"))[0]);
    const int64_t height = image.size(2), width = image.size(3), least = std::min(height, width);
    const int64_t h = shorter * height / least, w = shorter * width / least;
    const std::string& filter = settings.at("interpolation");
    if (filter != "bilinear" && filter != "bicubic")
        throw std::runtime_error("LibTorch has no interpolation " + filter);
    const auto resized = filter == "bicubic" ? at::_upsample_bicubic2d_aa(image, {h, w}, false)
                                             : at::_upsample_bilinear2d_aa(image, {h, w}, false);
    const int64_t top = std::nearbyint((h - size) / 2.0), left = std::nearbyint((w - size) / 2.0);
    const auto crop = resized.narrow(2, top, size).narrow(3, left, size).to(at::kFloat).div(255);
    const auto channel = [&](const char* name) {
        return at::tensor(numbers(settings.at(name)), at::kFloat).view({1, -1, 1, 1});
    };
    return crop.sub(channel("mean")).div(channel("std")).contiguous();
}

int main(int count, char** arguments) try {
    if (count < 3) throw std::runtime_error("usage: classify MODEL.torchscript IMAGE.ppm ...");
    const c10::InferenceMode inference;
    Settings settings;
    for (const char* name : {"classes", "crop_pct", "img_size", "in_chans", "interpolation", "mean", "std"})
        settings[name]; // loading fills in what is asked for
    auto model = torch::jit::load(arguments[1], at::kCPU, settings);
    const auto classes = strings(settings["classes"]);
    for (int n = 2; n < count; ++n) {
        const auto image = read(arguments[n], numbers(settings.at("in_chans"))[0]);
        const auto probabilities = model.forward({preprocess(image, settings)}).toTensor().softmax(1)[0];
        const auto [values, labels] = probabilities.topk(std::min<int64_t>(5, probabilities.size(0)));
        for (int64_t k = 0; k < values.size(0); ++k) {
            const auto label = labels[k].item<int64_t>();
            const auto name = label < int64_t(classes.size()) ? classes[label] : "class " + std::to_string(label);
            std::printf("%s\t%s\t%.6f\n", arguments[n], name.c_str(), values[k].item<float>());
        }
    }
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
