#!/bin/sh
# Builds and runs the C++ tests: run.sh BUILD_FOLDER [cmake options]
set -eu
folder=$1
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
cmake -S "$root" -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSDENGINE_PYTHON=OFF \
    -DSDENGINE_TESTS=ON -DSDENGINE_CUDA=OFF -DSDENGINE_WERROR=ON "$@"
cmake --build "$folder"
ctest --test-dir "$folder" --output-on-failure
