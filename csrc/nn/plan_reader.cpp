#include "nn/plan_reader.h"

#include <algorithm>
#include <cmath>

#include "nn/packing.h"

namespace sdengine::nn {
namespace {

// A terabyte, and 2^30 along an axis: more than any network has, and products stay in 64 bits.
constexpr std::int64_t kMostBytes = std::int64_t{1} << 40;
constexpr std::int64_t kMostAlong = std::int64_t{1} << 30;
constexpr int kMostChannels = 1 << 20;  // of what is multiplied

const std::map<std::string, Type> kTypes = {
    {"float32", Type::Float32}, {"bfloat16", Type::BFloat16}, {"int64", Type::Int64}};
const std::map<std::string, Kind> kKinds = {{"float32", Kind::Float32},
                                            {"bfloat16", Kind::BFloat16},
                                            {"int16", Kind::Int16},
                                            {"int8", Kind::Int8}};
#define SDENGINE_WORD(Name, word, function) {word, Activation::Name},
const std::map<std::string, Activation> kActivations = {SDENGINE_LONE_ACTIVATIONS(SDENGINE_WORD)  //
                                                        {"none", Activation::None},
                                                        {"silu", Activation::Silu},
                                                        {"gelu", Activation::Gelu},
                                                        {"quick_gelu", Activation::QuickGelu},
                                                        {"geglu", Activation::Geglu},
                                                        {"relu", Activation::Relu}};
#undef SDENGINE_WORD

}  // namespace

Map read_map(const MapRecord& record, const std::string& what, Extent& extent) {
  const auto type = kTypes.find(record.type);
  if (type == kTypes.end()) throw PlanError(what + " is of type '" + record.type + "'");
  const std::int64_t sizes[] = {record.images, record.height, record.width, record.channels};
  std::int64_t rows = 1;
  for (int axis = 0; axis < 4; ++axis) {
    if (sizes[axis] < 1 || sizes[axis] > kMostAlong) {
      throw PlanError(what + " has " + std::to_string(sizes[axis]) + " values along an axis");
    }
    if (axis < 3) rows *= sizes[axis];
    if (rows > kMostAlong) throw PlanError(what + " has too many rows");
  }
  if (record.stride < record.channels || record.stride > kMostAlong) {
    throw PlanError(what + " has rows of " + std::to_string(record.channels) + " values " +
                    std::to_string(record.stride) + " apart");
  }
  const std::int64_t size = static_cast<std::int64_t>(size_of(type->second));
  if (record.offset < 0 || record.offset > kMostBytes || record.offset % size != 0) {
    throw PlanError(what + " lies at offset " + std::to_string(record.offset));
  }
  if (rows > kMostBytes / record.stride) throw PlanError(what + " is too large");
  const std::int64_t bytes = ((rows - 1) * record.stride + record.channels) * size;
  if (bytes > kMostBytes) throw PlanError(what + " is too large");
  extent.bytes = std::max(extent.bytes, static_cast<std::size_t>(record.offset + bytes));
  Map map;
  map.data = reinterpret_cast<char*>(static_cast<std::uintptr_t>(record.offset));
  map.type = type->second;
  map.images = static_cast<int>(record.images);
  map.height = static_cast<int>(record.height);
  map.width = static_cast<int>(record.width);
  map.channels = static_cast<int>(record.channels);
  map.stride = record.stride;
  return map;
}

void OperationReader::refuse(const std::string& problem) const {
  throw PlanError("operation '" + record_.name + "' (" + record_.kind + ") " + problem);
}

void OperationReader::require(bool holds, const std::string& problem) const {
  if (!holds) refuse(problem);
}

Map OperationReader::map(const std::string& role) const {
  const auto found = record_.maps.find(role);
  require(found != record_.maps.end(), "lacks the map '" + role + "'");
  return read_map(found->second,
                  "operation '" + record_.name + "' (" + record_.kind + "): '" + role + "'",
                  extent_);
}

Map OperationReader::floats(const std::string& role) const {
  const Map found = map(role);
  require(found.type != Type::Int64, "has integers for '" + role + "'");
  return found;
}

Map OperationReader::like(const std::string& role, const Map& other) const {
  const Map found = floats(role);
  require_same(found, other, role + " and out");
  return found;
}

Map OperationReader::per_image(const Map& out) const {
  const Map found = floats("per_image");
  require(found.images == out.images && found.pixels() == 1 && found.channels == out.channels,
          "has a 'per_image' of another shape than one row for each image of 'out'");
  return found;
}

void OperationReader::require_same(const Map& a, const Map& b, const std::string& names) const {
  require(a.images == b.images && a.height == b.height && a.width == b.width &&
              a.channels == b.channels,
          "has maps of different shapes: " + names);
}

double OperationReader::number(const std::string& role) const {
  const auto found = record_.numbers.find(role);
  require(found != record_.numbers.end(), "lacks the number '" + role + "'");
  require(std::isfinite(found->second), "has a '" + role + "' that is not finite");
  return found->second;
}

int OperationReader::integer(const std::string& role, int least, int most) const {
  const double value = number(role);
  require(value >= least && value <= most && value == std::floor(value),
          "has " + std::to_string(value) + " for '" + role + "'");
  return static_cast<int>(value);
}

const WeightBytes& OperationReader::weight(const std::string& role, std::size_t bytes) const {
  const auto name = record_.weights.find(role);
  require(name != record_.weights.end(), "lacks the weight '" + role + "'");
  const auto found = weights_.find(name->second);
  require(found != weights_.end(), "wants the weight '" + name->second + "', which is not there");
  require(found->second.bytes == bytes, "wants " + std::to_string(bytes) + " bytes of '" +
                                            name->second + "', which has " +
                                            std::to_string(found->second.bytes));
  return found->second;
}

const float* OperationReader::vector(const std::string& role, std::size_t count) const {
  const WeightBytes& found = weight(role, count * 4);
  require(reinterpret_cast<std::uintptr_t>(found.data) % 4 == 0,
          "has a weight '" + role + "' that is not aligned");
  return reinterpret_cast<const float*>(found.data);
}

Panels OperationReader::panels(int n, int k, Type type) const {
  require(n <= 2 * kMostChannels, "is too wide");
  const auto word = record_.words.find("weight_kind");
  require(word != record_.words.end() && kKinds.count(word->second) > 0,
          "has no 'weight_kind' that is known");
  Panels panels;
  panels.kind = kKinds.at(word->second);
  panels.n = n;
  panels.k = k;
  const Kind wanted = type == Type::BFloat16 ? Kind::BFloat16 : Kind::Float32;
  require(panels.kind == wanted || panels.kind == Kind::Int16 ||
              (panels.kind == Kind::Int8 && kind() == "linear"),
          "has weights of another kind than its input");
  panels.data = weight("weight", panels_bytes(panels.kind, n, k)).data;
  const std::size_t padded = std::size_t(panels.panels()) * kPanel;
  if (panels.kind == Kind::Int8 || panels.kind == Kind::Int16) {
    panels.column_scales = vector("scales", padded);
  }
  if (panels.kind == Kind::Int8) {
    panels.column_sums = reinterpret_cast<const std::int32_t*>(vector("sums", padded));
  }
  return panels;
}

Activation OperationReader::activation_word(bool gated) const {
  const auto word = record_.words.find("activation");
  const bool known = word != record_.words.end() && kActivations.count(word->second) > 0;
  require(known, "has no 'activation' that is known");
  const Activation found = kActivations.at(word->second);
  require(gated || found != Activation::Geglu, "cannot have a gated activation");
  require(found <= Activation::Relu || kind() == "activation",
          "cannot have '" + word->second + "', which is an operation of its own");
  return found;
}

Wraps OperationReader::wraps() const {
  const auto found = record_.words.find("wraps");
  const std::string axes = found == record_.words.end() ? "" : found->second;
  require(axes == "none" || axes == "x" || axes == "y" || axes == "xy",
          "has no 'wraps' that is known");
  return {axes == "y" || axes == "xy", axes == "x" || axes == "xy"};
}

Epilogue OperationReader::epilogue(int n) const {
  Epilogue epilogue;
  epilogue.out = floats("out");
  if (record_.weights.count("bias") > 0) epilogue.bias = vector("bias", n);
  return epilogue;
}

LinearArguments OperationReader::linear() const {
  LinearArguments arguments;
  arguments.x = floats("x");
  const Activation activation = activation_word(true);
  const bool gated = activation == Activation::Geglu;
  const int out_channels = floats("out").channels;
  require(arguments.x.channels <= kMostChannels && out_channels <= kMostChannels, "is too wide");
  const int n = gated ? 2 * out_channels : out_channels;
  arguments.epilogue = epilogue(n);
  arguments.epilogue.activation = activation;
  arguments.weight = panels(n, arguments.x.channels, arguments.x.type);
  require(arguments.x.rows() == arguments.epilogue.out.rows(), "has rows that do not match");
  require(!gated || (n % kPanel == 0 && !has("per_image")),
          "is gated and not of a multiple of 16 columns, or has a 'per_image'");
  return arguments;
}

ConvArguments OperationReader::conv() const {
  ConvArguments arguments;
  arguments.x = floats("x");
  const Map out = floats("out");
  arguments.kernel = integer("kernel", 1, 15);
  arguments.stride = integer("stride", 1, 15);
  arguments.padding = integer("padding", 0, 15);
  arguments.upsample = integer("upsample", 0, 1) == 1;
  arguments.wraps = wraps();
  require(arguments.x.images == out.images, "has images that do not match");
  require(out.height <= (1 << 24) && out.width <= (1 << 24) && arguments.x.height <= (1 << 24) &&
              arguments.x.width <= (1 << 24),
          "is too large");
  require(arguments.x.channels <= kMostChannels, "is too wide");
  arguments.epilogue = epilogue(out.channels);
  arguments.epilogue.activation = activation_word(false);
  const int k = arguments.x.channels * arguments.kernel * arguments.kernel;
  arguments.weight = panels(out.channels, k, arguments.x.type);
  return arguments;
}

WinogradArguments OperationReader::winograd() const {
  WinogradArguments arguments;
  arguments.x = floats("x");
  const Map out = floats("out");
  arguments.tile = integer("tile", 2, 4);
  arguments.upsample = integer("upsample", 0, 1) == 1;
  arguments.wraps = wraps();
  require(arguments.tile != 3, "has tiles of 3; 2 and 4 are known");
  require(arguments.x.channels <= kMostChannels && out.channels <= kMostChannels, "is too wide");
  const int factor = arguments.upsample ? 2 : 1;
  require(arguments.x.height <= (1 << 24) && arguments.x.width <= (1 << 24), "is too large");
  require(arguments.x.images == out.images && arguments.x.height * factor == out.height &&
              arguments.x.width * factor == out.width,
          "has maps of sizes that do not match");
  const auto word = record_.words.find("weight_kind");
  const bool in_16_bits = word != record_.words.end() && word->second == "int16";
  require(in_16_bits || (word != record_.words.end() && word->second == "float32" &&
                         arguments.x.type == Type::Float32),
          "has no 'weight_kind' that fits its input");
  arguments.kind = in_16_bits ? Kind::Int16 : Kind::Float32;
  arguments.out_channels = out.channels;
  arguments.epilogue = epilogue(out.channels);
  arguments.epilogue.activation = activation_word(false);
  require(arguments.epilogue.activation == Activation::None ||
              arguments.epilogue.activation == Activation::Relu,
          "has another activation than none or relu");
  const int points = (arguments.tile + 2) * (arguments.tile + 2);
  arguments.weight = weight("weight", winograd_bytes(arguments.kind, arguments.tile, out.channels,
                                                     arguments.x.channels))
                         .data;
  const std::size_t panels = (std::size_t(out.channels) + kPanel - 1) / kPanel;
  if (in_16_bits) arguments.scales = vector("scales", panels * points * kPanel);
  return arguments;
}

GroupNormArguments OperationReader::group_norm() const {
  GroupNormArguments arguments;
  arguments.x = floats("x");
  arguments.out = like("out", arguments.x);
  require(arguments.x.type == arguments.out.type, "has maps of different types");
  arguments.groups = integer("groups", 1, 1 << 20);
  require(arguments.x.channels % arguments.groups == 0,
          "has groups that do not divide its channels");
  arguments.epsilon = static_cast<float>(number("epsilon"));
  arguments.silu = activation_word(false) == Activation::Silu;
  arguments.weight = vector("weight", arguments.x.channels);
  arguments.bias = vector("bias", arguments.x.channels);
  return arguments;
}

AffineArguments OperationReader::affine() const {
  AffineArguments arguments;
  arguments.x = floats("x");
  arguments.factors = floats("factors");
  arguments.out = like("out", arguments.x);
  require(arguments.x.type == arguments.out.type, "has maps of different types");
  require(arguments.factors.type == Type::Float32 && arguments.factors.pixels() == 1 &&
              arguments.factors.images == arguments.x.images &&
              arguments.factors.channels == std::int64_t{2} * arguments.x.channels,
          "has no scale and shift in fp32 for each image and channel");
  arguments.silu = activation_word(false) == Activation::Silu;
  return arguments;
}

LayerNormArguments OperationReader::layer_norm() const {
  LayerNormArguments arguments;
  arguments.x = floats("x");
  arguments.out = like("out", arguments.x);
  require(arguments.x.type == arguments.out.type, "has maps of different types");
  arguments.epsilon = static_cast<float>(number("epsilon"));
  arguments.weight = vector("weight", arguments.x.channels);
  arguments.bias = vector("bias", arguments.x.channels);
  return arguments;
}

AttentionArguments OperationReader::attention() const {
  AttentionArguments arguments;
  arguments.q = floats("q");
  arguments.k = floats("k");
  arguments.v = like("v", arguments.k);
  arguments.out = like("out", arguments.q);
  const Map &q = arguments.q, &k = arguments.k;
  require(q.images == k.images && q.channels == k.channels && q.height == 1 && k.height == 1,
          "has queries and keys that do not match");
  require(q.type == k.type && q.type == arguments.v.type && q.type == arguments.out.type,
          "has maps of different types");
  arguments.heads = integer("heads", 1, 1 << 20);
  require(q.channels % arguments.heads == 0, "has heads that do not divide its channels");
  const std::size_t head_bytes = std::size_t(q.channels / arguments.heads) * size_of(q.type);
  require(head_bytes % 4 == 0, "has heads of an odd number of channels");
  arguments.scale = static_cast<float>(number("scale"));
  arguments.causal = integer("causal", 0, 1) == 1;
  return arguments;
}

AddArguments OperationReader::add() const {
  AddArguments arguments;
  arguments.a = floats("a");
  arguments.b = floats("b");
  arguments.out = like("out", arguments.a);
  const Map &a = arguments.a, &b = arguments.b;
  const bool same = a.height == b.height && a.width == b.width;
  require(a.channels == b.channels && ((same && (b.images == a.images || b.images == 1)) ||
                                       (b.pixels() == 1 && b.images == a.images)),
          "has maps of different shapes: a and b");
  arguments.scale = static_cast<float>(number("scale"));
  return arguments;
}

ActivationArguments OperationReader::activation() const {
  ActivationArguments arguments;
  arguments.x = floats("x");
  arguments.out = like("out", arguments.x);
  arguments.activation = activation_word(false);
  return arguments;
}

SinusoidArguments OperationReader::sinusoid() const {
  SinusoidArguments arguments;
  arguments.x = floats("x");
  arguments.out = floats("out");
  arguments.channels = integer("channels", 1, 1 << 20);
  require(arguments.x.rows() == arguments.out.rows() &&
              std::int64_t{2} * arguments.channels * arguments.x.channels == arguments.out.channels,
          "has maps of sizes that do not match");
  arguments.frequencies = vector("frequencies", arguments.channels);
  return arguments;
}

SelectArguments OperationReader::select() const {
  SelectArguments arguments;
  arguments.x = floats("x");
  arguments.out = floats("out");
  arguments.index = map("index");
  require(arguments.index.type == Type::Int64, "has an index that is not int64");
  require(arguments.index.rows() == arguments.x.images &&
              arguments.out.rows() == arguments.x.images &&
              arguments.out.channels == arguments.x.channels,
          "has maps of sizes that do not match");
  return arguments;
}

void OperationReader::check_copy(const std::vector<std::int64_t>& strides, const int* sizes,
                                 std::int64_t offset, std::size_t size) const {
  std::int64_t reach = 0;
  for (int axis = 0; axis < 4; ++axis) {
    require(strides[axis] >= 0 && strides[axis] <= kMostAlong, "has a stride that is too large");
    reach += strides[axis] * (sizes[axis] - 1);
    require(reach <= kMostBytes / 8, "is too large");
  }
  extent_.bytes =
      std::max(extent_.bytes, static_cast<std::size_t>(offset + (reach + 1) * std::int64_t(size)));
}

// The maps' own layout does not count here, only where they begin and their types.
CopyArguments OperationReader::copy() const {
  CopyArguments arguments;
  const Map from = map("from"), to = map("to");
  require(to.type != Type::Int64, "writes integers");
  arguments.from = from.data;
  arguments.to = to.data;
  arguments.from_type = from.type;
  arguments.to_type = to.type;
  for (const char* role : {"sizes", "from_strides", "to_strides"}) {
    const auto found = record_.lists.find(role);
    require(found != record_.lists.end() && found->second.size() == 4,
            std::string("lacks four numbers for '") + role + "'");
  }
  std::int64_t elements = 1;
  for (int axis = 0; axis < 4; ++axis) {
    const std::int64_t size = record_.lists.at("sizes")[axis];
    require(size >= 1 && size <= kMostAlong, "has a size that is too large");
    elements *= size;
    require(elements <= kMostAlong, "is too large");
    arguments.sizes[axis] = static_cast<int>(size);
    arguments.from_strides[axis] = record_.lists.at("from_strides")[axis];
    arguments.to_strides[axis] = record_.lists.at("to_strides")[axis];
  }
  check_copy(record_.lists.at("from_strides"), arguments.sizes,
             reinterpret_cast<std::intptr_t>(from.data), size_of(from.type));
  check_copy(record_.lists.at("to_strides"), arguments.sizes,
             reinterpret_cast<std::intptr_t>(to.data), size_of(to.type));
  return arguments;
}

}  // namespace sdengine::nn
