//! CubeCL kernels: faster ways to run functions of the OmChat IR.
//!
//! [`LIST`] is the catalogue, in order of preference. A kernel is chosen by codegen through its
//! [`Kernel`](omchat_codegen::Kernel) half, [prepared](Launch::prepare) once when a program is loaded, and
//! launched as often as the program runs:
//!
//! ```text
//! let prepared = LIST[i].prepare(&work, &schedule)?;          // once: host arithmetic, no device
//! let meta = upload(prepared.meta());                         // once: a small u32 buffer
//! prepared.launch(&client, &Args { operands, results, scratch, meta: &meta })?;   // each run: microseconds
//! ```
//!
//! Sizes and strides travel in that buffer, so a longer prompt compiles nothing: what a compilation depends
//! on is the kernel, its schedule, the body, the dtypes and which innermost strides are 0 or 1.

// In `#[cube]` code a loop is unrolled or becomes the device's, a branch may be decided at compile time, and numbers have only the
// methods that devices know.
#![allow(clippy::needless_range_loop, clippy::if_same_then_else, clippy::manual_is_multiple_of)]

mod attention;
mod attention_carry;
mod attention_dkv_mma;
mod attention_dkv_plain;
mod attention_dkv_rows;
mod attention_dkv_tiled;
mod attention_dkv_wgmma;
mod attention_dq_mma;
mod attention_dq_plain;
mod attention_dq_rows;
mod attention_dq_tiled;
mod attention_dq_wgmma;
mod attention_fragments;
mod attention_keys;
mod attention_merge;
mod attention_mma;
mod attention_panels;
mod attention_parts;
mod attention_plain;
mod attention_rows;
mod attention_sight;
mod attention_softmax;
mod attention_spans;
mod attention_split;
mod attention_tiled;
mod attention_tiles;
mod attention_warpgroups;
mod attention_wgmma;
mod bind;
mod body;
mod chain;
mod cross_entropy;
mod einsum;
mod einsum_copies;
mod einsum_dot;
mod einsum_mma;
mod einsum_panels;
mod einsum_rows;
mod einsum_split;
mod einsum_tf32;
mod einsum_tiled;
mod einsum_tiles;
mod einsum_vector;
mod einsum_wgmma;
mod fingerprint;
mod fold_columns;
mod fold_plain;
mod fold_shared;
mod fold_split;
mod grid;
mod horizontal;
mod key;
mod kth_largest_plain;
mod kth_largest_radix;
mod kth_largest_split;
mod layer_norm_rows;
mod linear_cross_entropy_dot;
mod linear_cross_entropy_mma;
mod linear_cross_entropy_tiled;
mod linear_cross_entropy_wgmma;
mod loops;
mod map_plain;
mod nest;
mod norm_dx_rows;
mod norm_dx_shared;
mod norm_shared;
mod packed;
mod prefetch_lines;
mod prepared;
mod rms_norm_rows;
mod scatter_add_plain;
mod source;
mod stages;
mod tally;
mod vector;
mod warpgroups;
mod words;

pub use bind::{Args, Buffer};
pub use chain::Chain;
pub use fingerprint::fingerprint;
pub use horizontal::Horizontal;
pub use prepared::{LaunchError, Parameter, Prepared, Step};
pub use source::Dialect;

use omchat_codegen::{Kernel, Schedule, Work};

/// The second half of a kernel: what codegen chose, made ready to run.
pub trait Launch: Kernel {
    /// The kernel fixed to that work and schedule, ready to be launched any number of times.
    ///
    /// Errors: the work is not what the kernel implements; it refused the schedule.
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError>;
}

fingerprint::listed! {
/// Every kernel, in order of preference; the plain ones, which take all that a target can address, last.
pub const LIST: &[&dyn Launch] = &[
    &attention_rows::AttentionRows,
    &attention_split::AttentionSplit,
    &attention_wgmma::AttentionWgmma,
    &attention_mma::AttentionMma,
    &attention_tiled::AttentionTiled,
    &attention_dq_rows::AttentionDqRows,
    &attention_dq_wgmma::AttentionDqWgmma,
    &attention_dq_mma::AttentionDqMma,
    &attention_dq_tiled::AttentionDqTiled,
    &attention_dkv_rows::AttentionDkvRows,
    &attention_dkv_wgmma::AttentionDkvWgmma,
    &attention_dkv_mma::AttentionDkvMma,
    &attention_dkv_tiled::AttentionDkvTiled,
    &norm_shared::NormShared,
    &rms_norm_rows::RmsNormRows,
    &layer_norm_rows::LayerNormRows,
    &norm_dx_shared::NormDxShared,
    &norm_dx_rows::NormDxRows,
    &linear_cross_entropy_dot::LinearCrossEntropyDot,
    &linear_cross_entropy_wgmma::LinearCrossEntropyWgmma,
    &linear_cross_entropy_mma::LinearCrossEntropyMma,
    &linear_cross_entropy_tiled::LinearCrossEntropyTiled,
    &einsum_wgmma::EinsumWgmma,
    &einsum_mma::EinsumMma,
    &einsum_tf32::EinsumTf32,
    &einsum_tiled::EinsumTiled,
    &einsum_vector::EinsumVector,
    &einsum_panels::EinsumPanels,
    &einsum_dot::EinsumDot,
    &einsum_rows::EinsumRows,
    &map_plain::MapPlain,
    &fold_split::FoldSplit,
    &fold_columns::FoldColumns,
    &fold_shared::FoldShared,
    &fold_plain::FoldPlain,
    &kth_largest_split::KthLargestSplit,
    &kth_largest_radix::KthLargestRadix,
    &kth_largest_plain::KthLargestPlain,
    &scatter_add_plain::ScatterAddPlain,
    &prefetch_lines::PrefetchLines,
    &attention_plain::AttentionPlain,
    &attention_dq_plain::AttentionDqPlain,
    &attention_dkv_plain::AttentionDkvPlain,
];
}

/// The kernel of that name, if there is one.
pub fn by_name(name: &str) -> Option<&'static dyn Launch> {
    LIST.iter().copied().find(|k| k.name() == name)
}
