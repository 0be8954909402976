//! OmChat in Rust: answers about pictures, videos and words, every computation expressed in the IR and run by
//! lowered kernels.
//!
//! [`Model`] is a checkpoint with its tokenizer: no device is touched. [`Engine`] is a model on a device.
//! [`Session`] is a conversation's memory: it reads tokens and yields logits. [`Chat`] joins them.
//!
//! ```no_run
//! use omchat::{Chat, ChatOptions, Device, Engine, EngineOptions, Model};
//! use std::ops::ControlFlow;
//! # fn main() -> Result<(), omchat::Error> {
//! let model = Model::open("mini")?;
//! let (device, _) = Device::best()?;
//! let engine = Engine::load(model, device, &EngineOptions::default(), &mut |_| {})?;
//! let mut chat = Chat::new(engine, ChatOptions::default())?;
//! chat.ask("The capital of France is", vec![], &mut |_| {}, &mut |text| {
//!     print!("{text}");
//!     ControlFlow::Continue(())
//! })?;
//! # Ok(())
//! # }
//! ```

mod adamw;
mod batch;
pub mod bench;
mod chat;
mod dump;
mod engine;
mod error;
mod init;
mod judge;
mod model;
mod owners;
pub mod plan;
mod ranks;
mod sampling;
mod session;
mod snapshot;
mod train_plan;
mod trainer;
pub mod training;
pub mod tuned;

pub use adamw::AdamW;
pub use batch::{Batch, Piece, Select};
pub use chat::{Answer, Chat, ChatOptions};
pub use dump::{After, Dump, watched};
pub use engine::{Engine, EngineOptions, Progress};
pub use error::Error;
pub use init::initial;
pub use judge::{AskOptions, Asker};
pub use model::{Model, home};
pub use omchat_codegen::{Memory, Program};
pub use omchat_model::chat::Visual;
pub use omchat_model::graph::{ForwardSpec, Part, Recompute, Selection, TrainSpec, Weigh};
pub use omchat_runtime::Device;
pub use ranks::Ranks;
pub use sampling::{Sampler, Sampling};
pub use session::{Chunks, Rows, Session, Stats};
pub use snapshot::Snapshot;
pub use train_plan::{TrainPlan, plan_training};
pub use trainer::{Begin, Gradients, MemoryUse, Step, Trainer, gradients};
