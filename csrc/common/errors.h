#pragma once

#include <stdexcept>

namespace sdengine {

// Invalid arguments are std::invalid_argument, which Python sees as ValueError.

// A device or its runtime library failed, or there is none.
class DeviceError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An earlier failure made the device unusable for this process, whatever is asked of it.
class DeviceLostError : public DeviceError {
  using DeviceError::DeviceError;
};

// The device has too little memory for an allocation.
class OutOfMemoryError : public DeviceError {
  using DeviceError::DeviceError;
};

// A value is NaN or infinite where only finite ones make sense.
class NonFiniteError : public DeviceError {
  using DeviceError::DeviceError;
};

}  // namespace sdengine
