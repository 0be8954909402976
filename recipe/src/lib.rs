//! How OmChat is made and judged: what is read, how it is packed, in which stages it trains, and what it must answer.
//!
//! Nothing here runs a model: the crate yields what a run takes and weighs what a run gave. It knows files and words,
//! no device, so that it builds and is tested in seconds; the `omchat` crate joins it to a trainer.

pub mod document;
pub mod error;
pub mod feed;
pub mod index;
pub mod judge;
pub mod labels;
pub mod mix;
pub mod mixture;
pub mod order;
pub mod pack;
pub mod packer;
pub mod passkeys;
mod pool;
pub mod recipe;
pub mod record;
pub mod reference;
pub mod report;
pub mod ring;
pub mod scenes;
pub mod schedule;
pub mod shards;
pub mod spec;
pub mod stage;
pub mod sums;
pub mod whole;

pub use error::{Error, Result};
pub use feed::{Feed, State};
pub use pack::Pack;
pub use recipe::Recipe;
pub use schedule::Schedule;
pub use stage::Stage;
pub use whole::write_whole;
