//! NVIDIA's libraries, found at run time: the few functions of NCCL and of the CUDA driver that are called, by their C
//! signatures. Nothing is linked, and nothing panics where a library or a function is missing.

use super::NcclError;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// A communicator, a stream, an event or a context.
pub(super) type Object = *mut c_void;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Unique(pub [u8; 128]);

/// `ncclConfig_t` as NCCL 2.14 had it. Later ones read the version, and take their own defaults for what it lacks.
#[repr(C)]
pub(super) struct Config {
    pub size: usize,
    pub magic: c_uint,
    pub version: c_uint,
    pub blocking: c_int,
}

impl Config {
    /// Calls of the communicator queue their work and come back.
    pub fn nonblocking() -> Config {
        Config { size: size_of::<Config>(), magic: 0xcafe_beef, version: super::LEAST, blocking: 0 }
    }
}

/// A table of functions of one library, and how to find them.
macro_rules! functions {
    ($(#[$doc:meta])* $name:ident { $($field:ident = $symbol:literal ($($arg:ty),*) -> $out:ty;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name { $(pub $field: unsafe extern "C" fn($($arg),*) -> $out,)* }

        impl $name {
            /// Finds every function; the library stays loaded.
            ///
            /// Errors: the first that is missing.
            fn find(library: Library, path: &str) -> Result<$name, NcclError> {
                $(
                    // SAFETY: the signature is the one of the library's header, which its major version keeps.
                    let $field = *unsafe { library.get::<unsafe extern "C" fn($($arg),*) -> $out>($symbol) }
                        .map_err(|_| missing(path, $symbol))?;
                )*
                // Threads of its own may run until the process ends.
                std::mem::forget(library);
                Ok($name { $($field,)* })
            }
        }
    };
}

functions! {
    /// Of `libnccl`, as `nccl.h` declares them; all of 2.14 or before.
    Functions {
        version = b"ncclGetVersion\0" (*mut c_int) -> c_int;
        unique = b"ncclGetUniqueId\0" (*mut Unique) -> c_int;
        join = b"ncclCommInitRankConfig\0" (*mut Object, c_int, Unique, c_int, *mut Config) -> c_int;
        abort = b"ncclCommAbort\0" (Object) -> c_int;
        state = b"ncclCommGetAsyncError\0" (Object, *mut c_int) -> c_int;
        text = b"ncclGetErrorString\0" (c_int) -> *const c_char;
        last = b"ncclGetLastError\0" (Object) -> *const c_char;
        open = b"ncclGroupStart\0" () -> c_int;
        close = b"ncclGroupEnd\0" () -> c_int;
        send = b"ncclSend\0" (*const c_void, usize, c_int, c_int, Object, Object) -> c_int;
        receive = b"ncclRecv\0" (*mut c_void, usize, c_int, c_int, Object, Object) -> c_int;
        all_gather = b"ncclAllGather\0" (*const c_void, *mut c_void, usize, c_int, Object, Object) -> c_int;
        reduce_scatter = b"ncclReduceScatter\0" (*const c_void, *mut c_void, usize, c_int, c_int, Object, Object) -> c_int;
        all_reduce = b"ncclAllReduce\0" (*const c_void, *mut c_void, usize, c_int, c_int, Object, Object) -> c_int;
    }
}

functions! {
    /// Of the CUDA driver, `libcuda`, as `cuda.h` declares them.
    Driver {
        init = b"cuInit\0" (c_uint) -> c_int;
        device = b"cuDeviceGet\0" (*mut c_int, c_int) -> c_int;
        identity = b"cuDeviceGetUuid\0" (*mut [u8; 16], c_int) -> c_int;
        context = b"cuDevicePrimaryCtxRetain\0" (*mut Object, c_int) -> c_int;
        current = b"cuCtxSetCurrent\0" (Object) -> c_int;
        stream = b"cuStreamCreate\0" (*mut Object, c_uint) -> c_int;
        event = b"cuEventCreate\0" (*mut Object, c_uint) -> c_int;
        record = b"cuEventRecord\0" (Object, Object) -> c_int;
        query = b"cuEventQuery\0" (Object) -> c_int;
        copy = b"cuMemcpyDtoDAsync_v2\0" (u64, u64, usize, Object) -> c_int;
        fill = b"cuMemsetD8Async\0" (u64, u8, usize, Object) -> c_int;
        name = b"cuGetErrorName\0" (c_int, *mut *const c_char) -> c_int;
    }
}

impl Functions {
    /// Of the first library of those names that loads.
    ///
    /// Errors: none loads; functions are missing.
    pub fn load(names: &[String]) -> Result<Functions, NcclError> {
        let (library, path) = first(names).map_err(|tried| NcclError::Absent { tried })?;
        Functions::find(library, &path)
    }
}

impl Driver {
    /// The driver of this machine.
    ///
    /// Errors: there is none; functions are missing.
    pub fn load() -> Result<Driver, NcclError> {
        let names = ["libcuda.so.1", "libcuda.so", "nvcuda.dll"].map(String::from);
        let (library, path) = first(&names).map_err(|tried| NcclError::NoDriver { tried })?;
        Driver::find(library, &path)
    }
}

fn first(names: &[String]) -> Result<(Library, String), String> {
    let mut tried = vec![];
    for name in names {
        // SAFETY: what NVIDIA's libraries do when they load is what every program that links them has done to it.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok((library, name.clone())),
            Err(why) => {
                let said = std::error::Error::source(&why).map_or_else(|| why.to_string(), ToString::to_string);
                tried.push(if said.contains(name.as_str()) { said } else { format!("{name}: {said}") });
            }
        }
    }
    Err(tried.join("; "))
}

fn missing(path: &str, symbol: &[u8]) -> NcclError {
    let function = String::from_utf8_lossy(symbol).trim_end_matches('\0').to_string();
    NcclError::Function { path: path.into(), function }
}

/// A C string of a library, which owns it.
///
/// # Safety
///
/// It is null or ends with a zero, and stays while it is copied.
pub(super) unsafe fn text(c: *const c_char) -> String {
    if c.is_null() {
        return String::new();
    }
    // SAFETY: the caller's.
    unsafe { CStr::from_ptr(c) }.to_string_lossy().into_owned()
}
