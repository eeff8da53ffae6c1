// Landmarks with onnxruntime's C API alone, from an end-to-end graph (pfld-edge convert --end-to-end).
//
//   landmarks MODEL.e2e.onnx PHOTO.ppm X0 Y0 X1 Y1
//
// prints x and y of each landmark, a line each. PHOTO is a binary PPM (P6), which every image program writes: reading JPEG
// is not what this example is about.

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

const OrtApi* const api = OrtGetApiBase()->GetApi(ORT_API_VERSION);

void check(OrtStatus* status) {
  if (status == nullptr) return;
  std::fprintf(stderr, "onnxruntime: %s\n", api->GetErrorMessage(status));
  api->ReleaseStatus(status);
  std::exit(2);
}

struct Photo {
  std::int64_t width = 0, height = 0;
  std::vector<std::uint8_t> rgb;
};

Photo read_ppm(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  Photo photo;
  int most = 0;
  file >> magic >> photo.width >> photo.height >> most;
  file.get();
  const bool plausible = photo.width > 0 && photo.height > 0 && photo.width < 65536 && photo.height < 65536;
  if (!file || magic != "P6" || most != 255 || !plausible) {
    std::fprintf(stderr, "%s: not a binary PPM of 8 bits\n", path);
    std::exit(2);
  }
  photo.rgb.assign(std::istreambuf_iterator<char>(file), {});
  if (photo.rgb.size() != static_cast<std::size_t>(photo.width * photo.height * 3)) {
    std::fprintf(stderr, "%s: cut off\n", path);
    std::exit(2);
  }
  return photo;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 7) {
    std::fprintf(stderr, "usage: landmarks MODEL.e2e.onnx PHOTO.ppm X0 Y0 X1 Y1\n");
    return 2;
  }
  Photo photo = read_ppm(arguments[2]);
  float box[4];
  for (int i = 0; i < 4; ++i) box[i] = std::strtof(arguments[3 + i], nullptr);

  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  OrtMemoryInfo* memory = nullptr;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "landmarks", &env));
  check(api->CreateSessionOptions(&options));
  check(api->SetIntraOpNumThreads(options, 1));
  check(api->CreateSession(env, arguments[1], options, &session));
  check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));

  const std::int64_t image_shape[] = {photo.height, photo.width, 3}, boxes_shape[] = {1, 4};
  OrtValue* inputs[2] = {nullptr, nullptr};
  OrtValue* found = nullptr;
  check(api->CreateTensorWithDataAsOrtValue(memory, photo.rgb.data(), photo.rgb.size(), image_shape, 3,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &inputs[0]));
  check(api->CreateTensorWithDataAsOrtValue(memory, box, sizeof box, boxes_shape, 2,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &inputs[1]));
  const char* input_names[] = {"image", "boxes"};
  const char* output_names[] = {"landmarks"};
  check(api->Run(session, nullptr, input_names, inputs, 2, output_names, 1, &found));

  float* points = nullptr;
  std::size_t values = 0;
  OrtTensorTypeAndShapeInfo* shape = nullptr;
  check(api->GetTensorMutableData(found, reinterpret_cast<void**>(&points)));
  check(api->GetTensorTypeAndShape(found, &shape));
  check(api->GetTensorShapeElementCount(shape, &values));
  for (std::size_t i = 0; i + 1 < values; i += 2) std::printf("%.4f %.4f\n", points[i], points[i + 1]);

  api->ReleaseTensorTypeAndShapeInfo(shape);
  api->ReleaseValue(found);
  for (OrtValue* value : inputs) api->ReleaseValue(value);
  api->ReleaseMemoryInfo(memory);
  api->ReleaseSession(session);
  api->ReleaseSessionOptions(options);
  api->ReleaseEnv(env);
  return 0;
}
