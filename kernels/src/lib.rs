//! CubeCL kernels: faster ways to run functions of the OmChat IR.
