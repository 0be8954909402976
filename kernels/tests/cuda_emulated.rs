//! The generated CUDA C++ itself, run on the host: every test of the kernels again, on emulated CUDA.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "attention.rs"]
mod attention;
#[path = "differential.rs"]
mod differential;
#[path = "scatter_add.rs"]
mod scatter_add;
