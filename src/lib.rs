//! OmChat in Rust.
