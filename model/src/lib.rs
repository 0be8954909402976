//! OmChat as modules of the IR, and what turns pictures, videos and words into its inputs.

pub mod bicubic;
pub mod chat;
pub mod checkpoint;
pub mod config;
mod config_fields;
pub mod config_json;
pub mod error;
mod ffmpeg;
pub mod format;
pub mod graph;
mod jpeg;
pub mod picture;
pub mod presets;
pub mod rope;
pub mod splice;
pub mod tiler;
pub mod tokenizer;
pub mod video;
pub mod weight_names;
pub mod weights;

pub use checkpoint::{Checkpoint, Stored};
pub use config::{OmChatConfig, ProjectorConfig, TextConfig, VisionConfig};
pub use error::{Error, Result};
