//! Where tensors live and which of Burn's backends computes them.

use burn::tensor::Device;

/// The processor, without gradients: inference.
pub fn cpu() -> Device {
    Device::flex()
}

/// The processor, recording gradients: training.
pub fn cpu_training() -> Device {
    Device::flex().autodiff()
}
