#pragma once

#include "nn/operation_table.h"

namespace sdengine::nn::SDENGINE_ISA {

void linear(const LinearArguments& arguments, ThreadPool& pool, const Scratch& scratch);
void conv(const ConvArguments& arguments, ThreadPool& pool, const Scratch& scratch);
void winograd(const WinogradArguments& arguments, ThreadPool& pool, const Scratch& scratch);
void group_norm(const GroupNormArguments& arguments, ThreadPool& pool, const Scratch& scratch);
void layer_norm(const LayerNormArguments& arguments, ThreadPool& pool, const Scratch& scratch);
void attention(const AttentionArguments& arguments, ThreadPool& pool, const Scratch& scratch);
// What `attention` does with bf16 maps: one where the set multiplies bf16 (kMultipliesBf16), the
// other elsewhere.
void attention_bf16(const AttentionArguments& arguments, ThreadPool& pool, const Scratch& scratch);
void attention_int16(const AttentionArguments& arguments, ThreadPool& pool, const Scratch& scratch);
void add(const AddArguments& arguments, ThreadPool& pool, const Scratch& scratch);
void activation(const ActivationArguments& arguments, ThreadPool& pool, const Scratch& scratch);
std::int64_t peak(Kind kind, std::int64_t rounds);

}  // namespace sdengine::nn::SDENGINE_ISA
