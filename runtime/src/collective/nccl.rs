//! NCCL: collectives from GPU to GPU (feature `nccl`), one rank a process and a GPU.
//!
//! The communicator is a nonblocking one: its calls queue and come back, and whoever waits asks after it, so that the loss
//! of a rank is seen while NCCL would wait for it for ever. It works on a stream of its own beside CubeCL's; who calls
//! waits for CubeCL's stream before, and tells CubeCL nothing until the event after it has come.

mod raw;

use super::fabric::{Fabric, Fault, Span};
use omchat_codegen::Family;
use omchat_ir::Dtype;
use omchat_ir::ops::FoldKind;
use raw::{Config, Driver, Functions, Object, Unique};
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// The least version: communicators that do not block came with it.
const LEAST: u32 = 21_400;
/// How long a communicator may take to be given up before it is left to the end of the process.
const ABORT: Duration = Duration::from_secs(2);

const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// `ncclSystemError`, `ncclInternalError` and `ncclRemoteError`: what a rank sees of another's end.
const REMOTE: [c_int; 3] = [2, 3, 6];
/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: c_int = 600;
/// `CU_STREAM_NON_BLOCKING`, and `CU_EVENT_DISABLE_TIMING`.
const NON_BLOCKING: u32 = 1;
const NO_TIMING: u32 = 2;

/// Why NCCL cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NcclError {
    /// There is no library.
    #[error(
        "no libnccl ({tried}): install NVIDIA's package libnccl2, or name the file in OMCHAT_NCCL_LIB (PyTorch brings one: \
         nvidia/nccl/lib/libnccl.so.2)"
    )]
    Absent {
        /// What the loader said of each name.
        tried: String,
    },
    /// A library lacks a function.
    #[error("{path} has no {function}: it is no NCCL of 2.14 or later; name another in OMCHAT_NCCL_LIB")]
    Function {
        /// The library.
        path: String,
        /// The function.
        function: String,
    },
    /// It is too old.
    #[error("NCCL {found} is too old: 2.14 or later is needed; name another in OMCHAT_NCCL_LIB")]
    Old {
        /// Its version.
        found: String,
    },
    /// There is no CUDA driver.
    #[error("no CUDA driver ({tried})")]
    NoDriver {
        /// What the loader said of each name.
        tried: String,
    },
    /// A call failed.
    #[error(transparent)]
    Call(#[from] Fault),
}

/// A rank's communicator, and the stream that it works on.
pub struct Nccl {
    nccl: Functions,
    cuda: Driver,
    version: String,
    device: c_int,
    context: Object,
    comm: Object,
    stream: Object,
    event: Object,
}

// SAFETY: communicators, contexts, streams and events belong to no thread; one at a time uses them.
unsafe impl Send for Nccl {}

/// The names under which a library is looked for: the one that `OMCHAT_NCCL_LIB` says, else the usual ones.
fn names() -> Vec<String> {
    match std::env::var("OMCHAT_NCCL_LIB") {
        Ok(name) if !name.is_empty() => vec![name],
        _ => ["libnccl.so.2", "libnccl.so"].map(String::from).to_vec(),
    }
}

impl Nccl {
    /// The version of the library that would be used, `2.30.7`. No device is touched.
    ///
    /// Errors: no library, or one that is too old.
    pub fn found() -> Result<String, NcclError> {
        Ok(found(&names())?.1)
    }

    /// As [`Nccl::found`], of the first library of those names.
    ///
    /// Errors: as there.
    pub fn found_in(names: &[String]) -> Result<String, NcclError> {
        Ok(found(names)?.1)
    }

    /// NCCL for the CUDA device of that number.
    ///
    /// Errors: no library, or one that is too old; no driver, or no such device.
    pub fn open(device: usize) -> Result<Nccl, NcclError> {
        let (nccl, version) = found(&names())?;
        let cuda = Driver::load()?;
        let mut new = Nccl {
            nccl,
            cuda,
            version,
            device: 0,
            context: null_mut(),
            comm: null_mut(),
            stream: null_mut(),
            event: null_mut(),
        };
        let number = c_int::try_from(device).unwrap_or(c_int::MAX);
        // SAFETY: the driver is initialized before it is asked; `device` is written.
        unsafe {
            new.cuda("cuInit", (cuda.init)(0))?;
            let found = (cuda.device)(&mut new.device, number);
            new.cuda("cuDeviceGet", found)?;
        }
        Ok(new)
    }

    fn cuda(&self, call: &'static str, code: c_int) -> Result<(), Fault> {
        if code == SUCCESS {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: the name is the driver's own text, or is left null.
        let said = unsafe {
            (self.cuda.name)(code, &mut name);
            raw::text(name)
        };
        Err(Fault { call, said: format!("{said} ({code})"), remote: false })
    }

    fn nccl(&self, call: &'static str, code: c_int) -> Result<(), Fault> {
        if matches!(code, SUCCESS | IN_PROGRESS) {
            return Ok(());
        }
        // SAFETY: both are texts of the library; the last error is asked of no communicator, or of one that is there.
        let (said, last) = unsafe { (raw::text((self.nccl.text)(code)), raw::text((self.nccl.last)(self.comm))) };
        let said = if last.is_empty() { said } else { format!("{said}: {}", last.trim()) };
        Err(Fault { call, said, remote: REMOTE.contains(&code) })
    }

    /// The state of the communicator: whether all that was called is queued.
    fn state(&self, call: &'static str) -> Result<bool, Fault> {
        let mut state = SUCCESS;
        // SAFETY: the communicator was made, or is being made; `state` is written.
        let asked = unsafe { (self.nccl.state)(self.comm, &mut state) };
        self.nccl("ncclCommGetAsyncError", asked)?;
        self.nccl(call, state)?;
        Ok(state == SUCCESS)
    }
}

fn found(names: &[String]) -> Result<(Functions, String), NcclError> {
    let nccl = Functions::load(names)?;
    let mut code = 0;
    // SAFETY: `code` is written.
    let asked = unsafe { (nccl.version)(&mut code) };
    if asked != SUCCESS {
        return Err(Fault { call: "ncclGetVersion", said: format!("error {asked}"), remote: false }.into());
    }
    let code = u32::try_from(code).unwrap_or(0);
    let found = numbers(code);
    // Before 2.9 numbers were shorter.
    if code < LEAST { Err(NcclError::Old { found }) } else { Ok((nccl, found)) }
}

/// A version as it is written.
fn numbers(code: u32) -> String {
    let (major, minor) = if code < 10_000 { (code / 1000, code / 100 % 10) } else { (code / 10_000, code / 100 % 100) };
    format!("{major}.{minor}.{}", code % 100)
}

/// `ncclInt8`: what is moved and not folded goes as bytes.
const BYTES: c_int = 0;

/// `ncclDataType_t`, of what is folded. A bool is stored as an i32.
fn kind(dtype: Dtype) -> c_int {
    match dtype {
        Dtype::I32 | Dtype::Bool => 2,
        Dtype::F16 => 6,
        Dtype::F32 => 7,
        Dtype::Bf16 => 9,
    }
}

/// `ncclRedOp_t`.
fn op(fold: FoldKind) -> c_int {
    match fold {
        FoldKind::Sum => 0,
        FoldKind::Max => 2,
    }
}

fn at<T>(span: Span) -> *mut T {
    std::ptr::with_exposed_provenance_mut(span.address() as usize)
}

impl Fabric for Nccl {
    fn name(&self) -> String {
        format!("nccl {}", self.version)
    }

    fn family(&self) -> Family {
        Family::Cuda
    }

    /// The GPU's own number. NCCL takes ranks with different `NCCL_HOSTID` as of different machines, which may share a GPU.
    fn identity(&mut self) -> Result<Vec<u8>, Fault> {
        let mut uuid = [0; 16];
        // SAFETY: `uuid` is written.
        let asked = unsafe { (self.cuda.identity)(&mut uuid, self.device) };
        self.cuda("cuDeviceGetUuid", asked)?;
        let host = std::env::var("NCCL_HOSTID").unwrap_or_default();
        Ok([&uuid, host.as_bytes()].concat())
    }

    fn unique(&mut self) -> Result<Vec<u8>, Fault> {
        let mut unique = Unique([0; 128]);
        // SAFETY: `unique` is written.
        let made = unsafe { (self.nccl.unique)(&mut unique) };
        self.nccl("ncclGetUniqueId", made)?;
        Ok(unique.0.to_vec())
    }

    fn join(&mut self, unique: &[u8], rank: usize, ranks: usize) -> Result<(), Fault> {
        let wrong = |said: String| Fault { call: "ncclCommInitRankConfig", said, remote: false };
        let unique: [u8; 128] = unique.try_into().map_err(|_| wrong(format!("a name of {} bytes", unique.len())))?;
        let number = |n: usize| c_int::try_from(n).map_err(|_| wrong(format!("{n} ranks")));
        let (rank, ranks) = (number(rank)?, number(ranks)?);
        let mut config = Config::nonblocking();
        // SAFETY: each call writes the object that the next takes; CubeCL uses the same primary context, which is kept.
        unsafe {
            let made = (self.cuda.context)(&mut self.context, self.device);
            self.cuda("cuDevicePrimaryCtxRetain", made)?;
            self.cuda("cuCtxSetCurrent", (self.cuda.current)(self.context))?;
            let made = (self.cuda.stream)(&mut self.stream, NON_BLOCKING);
            self.cuda("cuStreamCreate", made)?;
            let made = (self.cuda.event)(&mut self.event, NO_TIMING);
            self.cuda("cuEventCreate", made)?;
            let made = (self.nccl.join)(&mut self.comm, ranks, Unique(unique), rank, &mut config);
            self.nccl("ncclCommInitRankConfig", made)
        }
    }

    fn group(&mut self, open: bool) -> Result<(), Fault> {
        // SAFETY: opened and closed on one thread.
        let (call, code) = unsafe {
            if open { ("ncclGroupStart", (self.nccl.open)()) } else { ("ncclGroupEnd", (self.nccl.close)()) }
        };
        self.nccl(call, code)
    }

    fn send(&mut self, from: Span, to: usize) -> Result<(), Fault> {
        // SAFETY: a span's memory is a device's and is kept until the exchange ended, here and below.
        let code = unsafe { (self.nccl.send)(at(from), from.bytes(), BYTES, to as c_int, self.comm, self.stream) };
        self.nccl("ncclSend", code)
    }

    fn receive(&mut self, into: Span, from: usize) -> Result<(), Fault> {
        // SAFETY: as in `send`.
        let code = unsafe { (self.nccl.receive)(at(into), into.bytes(), BYTES, from as c_int, self.comm, self.stream) };
        self.nccl("ncclRecv", code)
    }

    fn all_gather(&mut self, own: Span, all: Span) -> Result<(), Fault> {
        // SAFETY: as in `send`.
        let code = unsafe { (self.nccl.all_gather)(at(own), at(all), own.bytes(), BYTES, self.comm, self.stream) };
        self.nccl("ncclAllGather", code)
    }

    fn reduce_scatter(&mut self, all: Span, own: Span, dtype: Dtype) -> Result<(), Fault> {
        let (n, op) = (own.bytes() / dtype.bytes(), op(FoldKind::Sum));
        // SAFETY: as in `send`.
        let code = unsafe { (self.nccl.reduce_scatter)(at(all), at(own), n, kind(dtype), op, self.comm, self.stream) };
        self.nccl("ncclReduceScatter", code)
    }

    fn all_reduce(&mut self, own: Span, result: Span, dtype: Dtype, fold: FoldKind) -> Result<(), Fault> {
        let n = own.bytes() / dtype.bytes();
        // SAFETY: as in `send`.
        let code =
            unsafe { (self.nccl.all_reduce)(at(own), at(result), n, kind(dtype), op(fold), self.comm, self.stream) };
        self.nccl("ncclAllReduce", code)
    }

    fn copy(&mut self, from: Span, to: Span) -> Result<(), Fault> {
        // SAFETY: as in `send`.
        let code = unsafe { (self.cuda.copy)(to.address(), from.address(), from.bytes().min(to.bytes()), self.stream) };
        self.cuda("cuMemcpyDtoDAsync", code)
    }

    fn zero(&mut self, to: Span) -> Result<(), Fault> {
        // SAFETY: as in `send`.
        let code = unsafe { (self.cuda.fill)(to.address(), 0, to.bytes(), self.stream) };
        self.cuda("cuMemsetD8Async", code)
    }

    fn taken(&mut self) -> Result<bool, Fault> {
        self.state("a call of NCCL")
    }

    fn mark(&mut self) -> Result<(), Fault> {
        // SAFETY: event and stream are there since `join`.
        let code = unsafe { (self.cuda.record)(self.event, self.stream) };
        self.cuda("cuEventRecord", code)
    }

    fn done(&mut self) -> Result<bool, Fault> {
        // SAFETY: as in `mark`.
        let code = unsafe { (self.cuda.query)(self.event) };
        if code != NOT_READY {
            self.cuda("cuEventQuery", code)?;
            return Ok(true);
        }
        self.state("an exchange by NCCL")?;
        Ok(false)
    }

    fn abort(&mut self) {
        if self.comm.is_null() {
            return;
        }
        let (nccl, cuda) = (self.nccl, self.cuda);
        // As numbers: they go to a thread of their own, which may outlive this.
        let [comm, context] = [self.comm, self.context].map(|object| object.expose_provenance());
        self.comm = null_mut();
        let (tell, told) = channel();
        thread::spawn(move || {
            // SAFETY: nobody else has the communicator from here on.
            unsafe {
                (cuda.current)(std::ptr::with_exposed_provenance_mut(context));
                (nccl.abort)(std::ptr::with_exposed_provenance_mut(comm));
            }
            let _ = tell.send(());
        });
        // One that hangs is left to the end of the process.
        let _ = told.recv_timeout(ABORT);
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_nvidia_writes_them() {
        for (code, want) in [(23_007, "2.30.7"), (21_400, "2.14.0"), (22_205, "2.22.5"), (2708, "2.7.8")] {
            assert_eq!(numbers(code), want);
        }
    }

    #[test]
    fn the_configuration_is_that_of_the_least_version() {
        let config = Config::nonblocking();
        assert_eq!((config.size, config.magic, config.version, config.blocking), (24, 0xcafe_beef, 21_400, 0));
    }
}
