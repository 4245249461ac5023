//! Fast CPU operations on slices, each beside its plain version, forward and backward.
//!
//! No framework: matrices are row-major slices, a wrong length panics (it is a mistake in the program). Work is
//! shared by rayon in pieces with fixed bounds and sums run in a fixed order, so that the same thread count on the
//! same processor gives the same bytes.
// Kernels walk several slices of one length by one index: the form that the compiler vectorises.
#![allow(clippy::needless_range_loop)]

pub mod activation;
pub mod attention;
pub mod bf16_product;
mod causal_conv;
pub mod conv1d;
pub mod cross_entropy;
pub mod depthwise;
pub mod dropout;
pub mod linear;
pub mod lstm;
pub mod mamba1;
pub mod mamba2;
pub mod matmul;
pub mod memory;
pub mod norm;
pub mod optimizer;
pub mod panel_linear;
mod plain;
mod sequences;
pub mod simd;
mod small_gemm;
pub mod snake;
mod threads;

#[cfg(test)]
#[path = "../tests/common/instruction_sets.rs"]
mod instruction_sets;

#[cfg(test)]
mod tests {
    #[test]
    fn every_instruction_set_obeys_these_laws() {
        crate::instruction_sets::repeat_without("every_instruction_set_obeys_these_laws", crate::simd::LIMIT);
    }
}
