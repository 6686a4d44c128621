// Prints product, score and verdict of an image:  predict MODEL.xml IMAGE.ppm [PRODUCT]
//
// MODEL comes from `anomalib export --export_type openvino --onnx_kwargs '{"class_output": true, "product_input": true}'`;
// without product_input, PRODUCT cannot be given. IMAGE is a binary PPM, 8 bits, RGB; `python -c "from PIL import
// Image; Image.open('a.png').convert('RGB').save('a.ppm')"` makes one. A camera's own buffer will do as well.
#include <algorithm>
#include <fstream>
#include <iostream>
#include <openvino/openvino.hpp>

// The image as a tensor of shape (1, height, width, 3), red, green and blue from 0 to 255.
ov::Tensor read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    size_t width = 0, height = 0, white = 0;
    file >> kind >> width >> height >> white;
    if (kind != "P6" || white != 255)
        throw std::runtime_error(path + " is no binary PPM of 8 bits");
    file.get();  // one white space before the pixels
    ov::Tensor image(ov::element::u8, {1, height, width, 3});
    if (!file.read(reinterpret_cast<char*>(image.data<uint8_t>()), image.get_byte_size()))
        throw std::runtime_error(path + " ends before its last pixel");
    return image;
}

// The strings of a JSON list, as the metadata have the class names.
std::vector<std::string> strings(const std::string& json) {
    std::vector<std::string> found;
    bool inside = false;
    for (size_t i = 0; i < json.size(); ++i) {
        if (json[i] == '"') {
            inside = !inside;
            if (inside)
                found.emplace_back();
        } else if (inside) {
            found.back() += json[i] == '\\' ? json[++i] : json[i];
        }
    }
    return found;
}

int main(int argc, char* argv[]) try {
    if (argc < 3)
        throw std::runtime_error("usage: predict MODEL.xml IMAGE.ppm [PRODUCT]");
    ov::Core core;
    auto model = core.read_model(argv[1]);
    const bool takes_product = model->inputs().size() > 1;
    if (model->outputs().size() != 6 || (argc > 3 && !takes_product))
        throw std::runtime_error("the model must be exported with class_output, and product_input for a PRODUCT");
    auto names = strings(model->get_rt_info<std::string>("framework", "class_names"));

    // The model takes floats from 0 to 1, of shape (batch, 3, height, width).
    ov::preprocess::PrePostProcessor steps(model);
    steps.input("input").tensor().set_element_type(ov::element::u8).set_layout("NHWC");
    steps.input("input").preprocess().convert_element_type(ov::element::f32).scale(255.0f);
    steps.input("input").model().set_layout("NCHW");
    model = steps.build();

    auto request = core.compile_model(model, "CPU").create_infer_request();
    request.set_tensor("input", read_ppm(argv[2]));
    if (takes_product) {
        auto place = argc > 3 ? std::find(names.begin(), names.end(), argv[3]) : names.end();
        if (argc > 3 && place == names.end())
            throw std::runtime_error(std::string("the model does not know the product ") + argv[3]);
        ov::Tensor product(ov::element::i64, {1});
        product.data<int64_t>()[0] = argc > 3 ? place - names.begin() : -1;  // -1: the model recognises it
        request.set_tensor("product", product);
    }
    request.infer();

    names.push_back("unknown");
    auto index = request.get_tensor("class_index").data<int64_t>()[0];
    auto score = request.get_tensor("pred_score").data<float>()[0];
    auto anomalous = request.get_tensor("pred_label").data<bool>()[0];
    std::cout << names.at(index) << ", score " << score << ", " << (anomalous ? "anomalous" : "normal") << "\n";
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
}
