//! Executes programs of the OmChat IR on CubeCL devices: devices, buffers, launches. It runs any program and
//! knows no model.

mod bound;
mod carried;
mod ceilings;
pub mod collective;
mod compiled;
mod device;
mod error;
mod executable;
mod facts;
mod faults;
mod host;
mod launches;
mod ranked;
mod room;
mod store;
mod table;
mod trial;
pub mod tune;
mod window;

pub use ceilings::{Best, Ceilings, amounts};
pub use device::{Device, NAMES};
pub use error::Error;
pub use executable::{Executable, Param, Timing, program, program_tuned, program_with};
pub use facts::CUBECL;
pub use host::HostTensor;
pub use room::{Home, Room};
pub use store::{Store, Stored};
pub use table::{Entry, Table};
pub use trial::{Budget, Examined, Times, Trial};
