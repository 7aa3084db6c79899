// Networks of one operation: right results on every instruction set, and mutated plans, which
// either run or are refused. Weights lie in memory of exactly their size, so that the address
// sanitizer sees every read beyond them.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "check.h"
#include "common/errors.h"
#include "nn/instruction_sets.h"
#include "nn/network.h"
#include "nn/packing.h"

using namespace sdengine::nn;

namespace {

constexpr int kSide = 6, kChannels = 32, kTokens = kSide * kSide;
constexpr int kPlans = 100000;
#ifdef __SANITIZE_THREAD__
constexpr int kPlanThreads =
    1;  // maps of mutated plans overlap, and their values are then anybody's
#else
constexpr int kPlanThreads = 2;
#endif

struct Case {
  OperationRecord record;
  std::map<std::string, std::vector<char>> weights;

  std::map<std::string, WeightBytes> bytes() const {
    std::map<std::string, WeightBytes> all;
    for (const auto& [name, data] : weights) all[name] = {data.data(), data.size()};
    return all;
  }
};

std::int64_t place(Case& made, const char* role, const char* type, int height, int width,
                   int channels, std::int64_t offset) {
  made.record.maps[role] = {offset, type, 1, height, width, channels, channels};
  const std::int64_t item = std::string(type) == "bfloat16" ? 2 : 4;
  return (offset + item * height * width * channels + 63) / 64 * 64;
}

template <typename T>
void keep(Case& made, const char* role, const std::vector<T>& values) {
  const char* data = reinterpret_cast<const char*>(values.data());
  made.weights[role] = std::vector<char>(data, data + values.size() * sizeof(T));
  made.record.weights[role] = role;
}

std::vector<float> ramp(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = 0.01f * static_cast<float>(i % 17) - 0.08f;
  return values;
}

void pack_tensor(Kind kind, int tile, int kernel, const std::vector<float>& tensor,
                 std::vector<char>& packed, std::vector<float>& scales,
                 std::vector<std::int32_t>& sums) {
  const Source source{tensor.data(), Stored::Float32, kChannels, nullptr, 0};
  Packing packing;
  packing.kind = kind;
  packing.tile = tile;
  packing.n = packing.channels = kChannels;
  packing.kernel = kernel;
  packing.sources = &source;
  packing.source_count = 1;
  packing.to = packed.data();
  packing.scales = scales.data();
  packing.sums = sums.data();
  CHECK(pack(packing, operations_for("")));
}

Case product(const char* kind, Kind weights, const char* type) {
  Case made;
  made.record.kind = kind;
  made.record.name = "tested";
  const bool is_linear = std::string(kind) == "linear";
  const int k = is_linear ? kChannels : 9 * kChannels;
  std::vector<char> packed(panels_bytes(weights, kChannels, k));
  std::vector<float> scales(kPanel);
  std::vector<std::int32_t> sums(kPanel);
  pack_tensor(weights, 0, is_linear ? 1 : 3, ramp(kChannels * k), packed, scales, sums);
  keep(made, "weight", packed);
  keep(made, "bias", ramp(kChannels));
  if (weights == Kind::Int8 || weights == Kind::Int16) keep(made, "scales", scales);
  if (weights == Kind::Int8) keep(made, "sums", sums);
  made.record.words["weight_kind"] = weights == Kind::Int8       ? "int8"
                                     : weights == Kind::Int16    ? "int16"
                                     : weights == Kind::BFloat16 ? "bfloat16"
                                                                 : "float32";
  made.record.words["activation"] = "none";
  made.record.words["wraps"] = "none";
  made.record.numbers = {{"kernel", 3}, {"stride", 1}, {"padding", 1}, {"upsample", 0}};
  const auto next = place(made, "x", type, kSide, kSide, kChannels, 0);
  place(made, "out", type, kSide, kSide, kChannels, next);
  return made;
}

Case winograd(Kind weights, int tile, const char* type) {
  Case made;
  made.record.kind = "winograd";
  made.record.name = "tested";
  std::vector<char> packed(winograd_bytes(weights, tile, kChannels, kChannels));
  std::vector<float> scales((tile + 2) * (tile + 2) * kPanel);
  std::vector<std::int32_t> sums;
  pack_tensor(weights, tile, 3, ramp(kChannels * kChannels * 9), packed, scales, sums);
  keep(made, "weight", packed);
  if (weights == Kind::Int16) keep(made, "scales", scales);
  made.record.words["weight_kind"] = weights == Kind::Int16 ? "int16" : "float32";
  made.record.words["activation"] = "none";
  made.record.words["wraps"] = "none";
  made.record.numbers = {{"tile", tile}, {"upsample", 0}};
  const auto next = place(made, "x", type, kSide, kSide, kChannels, 0);
  place(made, "out", type, kSide, kSide, kChannels, next);
  return made;
}

Case wrapping(Case made) {
  made.record.words["wraps"] = "xy";
  return made;
}

Case norm(const char* kind) {
  Case made;
  made.record.kind = kind;
  made.record.name = "tested";
  keep(made, "weight", ramp(kChannels));
  keep(made, "bias", ramp(kChannels));
  made.record.words["activation"] = "silu";
  made.record.numbers = {{"groups", 8}, {"epsilon", 1e-5}};
  const auto next = place(made, "x", "float32", kSide, kSide, kChannels, 0);
  place(made, "out", "float32", kSide, kSide, kChannels, next);
  return made;
}

Case affine() {
  Case made;
  made.record.kind = "affine";
  made.record.name = "tested";
  made.record.words["activation"] = "silu";
  auto next = place(made, "x", "float32", kSide, kSide, kChannels, 0);
  next = place(made, "factors", "float32", 1, 1, 2 * kChannels, next);
  place(made, "out", "float32", kSide, kSide, kChannels, next);
  return made;
}

Case attention(const char* type) {
  Case made;
  made.record.kind = "attention";
  made.record.name = "tested";
  made.record.numbers = {{"heads", 2}, {"scale", 0.25}, {"causal", 0}};
  std::int64_t next = 0;
  for (const char* role : {"q", "k", "v", "out"}) {
    next = place(made, role, type, 1, kTokens, kChannels, next);
  }
  return made;
}

Case copy() {
  Case made;
  made.record.kind = "copy";
  made.record.name = "tested";
  const auto next = place(made, "from", "float32", kSide, kSide, kChannels, 0);
  place(made, "to", "bfloat16", kSide, kSide, kChannels, next);
  made.record.lists["sizes"] = {1, kSide, kSide, kChannels};
  made.record.lists["from_strides"] = {0, kSide, 1, kTokens};
  made.record.lists["to_strides"] = {0, kSide * kChannels, kChannels, 1};
  return made;
}

std::vector<Case> cases() {
  return {product("linear", Kind::Float32, "float32"),
          product("linear", Kind::BFloat16, "bfloat16"),
          product("linear", Kind::Int8, "bfloat16"),
          product("linear", Kind::Int16, "bfloat16"),
          product("conv", Kind::Float32, "float32"),
          product("conv", Kind::Int16, "bfloat16"),
          winograd(Kind::Float32, 4, "float32"),
          winograd(Kind::Int16, 4, "bfloat16"),
          winograd(Kind::Int16, 2, "float32"),
          wrapping(product("conv", Kind::Float32, "float32")),
          wrapping(winograd(Kind::Float32, 4, "float32")),
          wrapping(winograd(Kind::Int16, 2, "float32")),
          norm("group_norm"),
          norm("layer_norm"),
          affine(),
          attention("float32"),
          attention("bfloat16"),
          copy()};
}

void every_set_computes_winograd_as_a_plain_convolution() {
  for (const std::string& isa : instruction_sets()) {
    std::vector<std::vector<float>> found;
    for (const Case& made :
         {product("conv", Kind::Float32, "float32"), winograd(Kind::Float32, 4, "float32"),
          winograd(Kind::Float32, 2, "float32")}) {
      Case plain = made;
      plain.record.weights.erase("bias");
      Network network({plain.record}, plain.bytes(), operations_for(isa), ThreadPool::shared(2));
      auto* x = reinterpret_cast<float*>(network.address(plain.record.maps.at("x")));
      const std::vector<float> values = ramp(kTokens * kChannels);
      std::memcpy(x, values.data(), values.size() * 4);
      network.run();
      auto* out = reinterpret_cast<float*>(network.address(plain.record.maps.at("out")));
      found.emplace_back(out, out + kTokens * kChannels);
    }
    for (std::size_t i = 0; i < found[0].size(); ++i) {
      CHECK_NEAR(found[1][i], found[0][i], 1e-5);
      CHECK_NEAR(found[2][i], found[0][i], 1e-5);
    }
  }
}

std::vector<float> values_of(const char* data, const MapRecord& map) {
  std::vector<float> values(map.height * map.width * map.channels);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (map.type == "float32") {
      std::memcpy(&values[i], data + 4 * i, 4);
    } else {
      std::uint32_t bits = 0;
      std::memcpy(reinterpret_cast<char*>(&bits) + 2, data + 2 * i, 2);
      std::memcpy(&values[i], &bits, 4);
    }
  }
  return values;
}

// The output for normal inputs, drawn anew for each call with the same seed.
std::vector<float> output_of(Network& network, const Case& made) {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  const MapRecord* out = nullptr;
  for (const auto& [role, map] : made.record.maps) {
    if (role == "out" || role == "to") {
      out = &map;
      continue;
    }
    char* to = network.address(map);
    for (int i = 0; i < map.height * map.width * map.channels; ++i) {
      const float value = normal(random);
      std::uint32_t bits;
      std::memcpy(&bits, &value, 4);
      bits &= 0xffff0000u;  // a bf16 number in either type
      if (map.type == "float32") {
        std::memcpy(to + 4 * i, &bits, 4);
      } else {
        std::memcpy(to + 2 * i, reinterpret_cast<const char*>(&bits) + 2, 2);
      }
    }
  }
  network.run();
  return values_of(network.address(*out), *out);
}

std::vector<float> output(const Case& made, const std::string& isa) {
  Network network({made.record}, made.bytes(), operations_for(isa), ThreadPool::shared(2));
  return output_of(network, made);
}

void other_weights_take_the_place_of_some() {
  for (const Case& made : cases()) {
    if (made.weights.count("bias") == 0) continue;
    Case other = made;  // with another bias alone
    std::vector<char>& bias = other.weights["bias"];
    std::rotate(bias.begin(), bias.begin() + 8, bias.end());
    const std::vector<float> before = output(made, ""), after = output(other, "");
    CHECK(before != after);
    Network network({made.record}, made.bytes(), operations_for(""), ThreadPool::shared(2));
    const char* x = network.address(made.record.maps.begin()->second);
    const WeightBytes changed{bias.data(), bias.size()};
    network.rebind({{"bias", changed}});
    CHECK(output_of(network, made) == after);
    for (const auto& wrong : std::vector<std::map<std::string, WeightBytes>>{
             {{"bias", {bias.data(), bias.size() - 4}}}, {{"nothing", changed}}}) {
      try {
        network.rebind(wrong);
        CHECK(false);
      } catch (const PlanError&) {
        CHECK(output_of(network, made) == after);
      }
    }
    network.rebind(made.bytes());
    CHECK(output_of(network, made) == before);
    CHECK(network.address(made.record.maps.begin()->second) == x);
  }
}

void every_set_computes_what_plain_cpp_does() {
  for (const Case& made : cases()) {
    const std::vector<float> expected = output(made, "portable");
    const bool is_rounded = made.record.weights.count("scales") != 0 ||
                            made.record.maps.begin()->second.type == "bfloat16";
    for (const std::string& isa : instruction_sets()) {
      const std::vector<float> found = output(made, isa);
      double error = 0.0, size = 0.0;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        error += std::pow(found[i] - expected[i], 2);
        size += std::pow(expected[i], 2);
      }
      CHECK(size > 0.0);
      // Where values are rounded, sets do so to different numbers of bits, 8 at least.
      CHECK_NEAR(std::sqrt(error / size), 0.0, is_rounded ? 1e-2 : 1e-5);
    }
  }
}

void every_case_runs_on_any_number_of_threads() {
  for (const Case& made : cases()) {
    for (int threads = 1; threads <= 8; ++threads) {
      Network network({made.record}, made.bytes(), operations_for(""), ThreadPool::shared(threads));
      double seconds = -1.0;
      network.run(&seconds);
      CHECK(seconds >= 0.0);
    }
  }
}

void mutate(OperationRecord& record, std::mt19937& random) {
  const auto pick = [&](std::size_t count) { return random() % count; };
  static const std::int64_t odd[] = {0,  1,       -1,      2,       3,         7,         31,
                                     33, 1 << 15, 1 << 20, 1 << 30, 1LL << 31, 1LL << 40, -5};
  const std::int64_t value = odd[pick(std::size(odd))];
  static const char* words[] = {"",     "linear", "conv",  "float32", "bfloat16",
                                "int8", "int16",  "geglu", "none",    "int64"};
  auto map = record.maps.begin();
  std::advance(map, pick(record.maps.size()));
  std::int64_t* fields[] = {&map->second.offset, &map->second.images,   &map->second.height,
                            &map->second.width,  &map->second.channels, &map->second.stride};
  switch (pick(8)) {
    case 0:
      map->second.type = words[pick(std::size(words))];
      break;
    case 1:
      if (!record.numbers.empty()) {
        auto number = record.numbers.begin();
        std::advance(number, pick(record.numbers.size()));
        number->second = pick(4) == 0 ? NAN : static_cast<double>(value);
      }
      break;
    case 2:
      if (!record.words.empty()) record.words.begin()->second = words[pick(std::size(words))];
      break;
    case 3:
      if (!record.lists.empty()) record.lists.begin()->second[pick(4)] = value;
      break;
    case 4:
      record.kind = pick(2) == 0 ? "conv" : "winograd";
      break;
    default:
      *fields[pick(6)] += pick(2) == 0 ? value : static_cast<std::int64_t>(pick(129)) - 64;
  }
}

void mutated_plans_run_or_are_refused() {
  std::mt19937 random(0);
  const std::vector<Case> all = cases();
  const auto pool = ThreadPool::shared(kPlanThreads);
  int ran = 0, refused = 0;
  for (int plan = 0; plan < kPlans; ++plan) {
    const Case& made = all[random() % all.size()];
    OperationRecord record = made.record;
    for (int change = 1 + static_cast<int>(random() % 3); change > 0; --change) {
      mutate(record, random);
    }
    try {
      Network network({record}, made.bytes(), operations_for(""), pool);
      if (network.arena_bytes() + network.scratch_bytes() < (1 << 20)) network.run();
      ++ran;
    } catch (const PlanError&) {
      ++refused;
    } catch (const sdengine::OutOfMemoryError&) {
      ++refused;
    }
  }
  CHECK(ran > kPlans / 20);
  CHECK(refused > kPlans / 20);
}

void errors_name_the_operation() {
  Case made = product("linear", Kind::Float32, "float32");
  made.weights["weight"].pop_back();
  try {
    Network network({made.record}, made.bytes(), operations_for(""), ThreadPool::shared(1));
  } catch (const PlanError& error) {
    CHECK(std::string(error.what()).find("'tested' (linear)") != std::string::npos);
    return;
  }
  CHECK(false);
}

}  // namespace

int main() {
  return check::run_all({
      {"every_set_computes_winograd_as_a_plain_convolution",
       every_set_computes_winograd_as_a_plain_convolution},
      {"every_set_computes_what_plain_cpp_does", every_set_computes_what_plain_cpp_does},
      {"every_case_runs_on_any_number_of_threads", every_case_runs_on_any_number_of_threads},
      {"other_weights_take_the_place_of_some", other_weights_take_the_place_of_some},
      {"mutated_plans_run_or_are_refused", mutated_plans_run_or_are_refused},
      {"errors_name_the_operation", errors_name_the_operation},
  });
}
