//! How OmChat is made and judged: what is read, how it is packed, in which stages it trains, and what it must answer.
//!
//! Nothing here runs a model: the crate yields what a run takes and weighs what a run gave. It knows files and words,
//! no device, so that it builds and is tested in seconds; the `omchat` crate joins it to a trainer.

pub mod error;
pub mod judge;
pub mod pack;
pub mod schedule;
pub mod stage;

pub use error::{Error, Result};
pub use pack::Pack;
pub use schedule::Schedule;
pub use stage::Stage;
