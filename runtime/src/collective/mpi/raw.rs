//! MPI's calls, each with its code looked at: messages of bytes that are sent, received and asked after, never waited for.

use mpi::ffi;
use std::ffi::{c_char, c_int};
use std::ptr;

/// What MPI said of a call that failed.
#[derive(Debug)]
pub(super) struct Fault(pub String);

/// A send or receive under way. MPI may touch its bytes until `done` says yes.
#[derive(Debug)]
pub(super) struct Pending(ffi::MPI_Request);

/// Asks MPI to report errors; otherwise it ends the process, and nobody learns which rank and which step.
pub(super) fn report_errors() -> Result<(), Fault> {
    // SAFETY: MPI is initialized, and both constants are its own.
    check(unsafe { ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN) })
}

/// Starts to send bytes.
///
/// # Safety
/// The bytes stay where they are and unchanged until the send is done, or until MPI is called no more.
pub(super) unsafe fn send(bytes: &[u8], to: usize, tag: i32) -> Result<Pending, Fault> {
    let mut request = null();
    // SAFETY: the range is the slice's, the caller keeps it.
    check(unsafe {
        ffi::MPI_Isend(
            bytes.as_ptr().cast(),
            count(bytes.len())?,
            ffi::RSMPI_UINT8_T,
            count(to)?,
            tag,
            ffi::RSMPI_COMM_WORLD,
            &mut request,
        )
    })?;
    Ok(Pending(request))
}

/// Starts to receive at most `room` bytes.
///
/// # Safety
/// `room` bytes from `into` are the caller's, and nothing else touches them until the receive is done, or until MPI is
/// called no more.
pub(super) unsafe fn receive(into: *mut u8, room: usize, from: usize, tag: i32) -> Result<Pending, Fault> {
    let mut request = null();
    // SAFETY: as the caller promises.
    check(unsafe {
        ffi::MPI_Irecv(
            into.cast(),
            count(room)?,
            ffi::RSMPI_UINT8_T,
            count(from)?,
            tag,
            ffi::RSMPI_COMM_WORLD,
            &mut request,
        )
    })?;
    Ok(Pending(request))
}

impl Pending {
    /// Whether it is done; lets MPI work on all that is under way.
    pub fn done(&mut self) -> Result<bool, Fault> {
        let mut flag = 0;
        // SAFETY: the request is one that MPI gave, or null once it is done.
        check(unsafe { ffi::MPI_Test(&mut self.0, &mut flag, ffi::RSMPI_STATUS_IGNORE) })?;
        Ok(flag != 0)
    }
}

/// A message with this tag that has come, from any rank: who sent it, and as much of it as there is room for.
pub(super) fn take(into: &mut [u8], tag: i32) -> Result<Option<usize>, Fault> {
    let mut flag = 0;
    let mut status = std::mem::MaybeUninit::<ffi::MPI_Status>::uninit();
    // SAFETY: the status is written where the flag is set, and read only then.
    let source = unsafe {
        check(ffi::MPI_Iprobe(ffi::RSMPI_ANY_SOURCE, tag, ffi::RSMPI_COMM_WORLD, &mut flag, status.as_mut_ptr()))?;
        if flag == 0 {
            return Ok(None);
        }
        status.assume_init().MPI_SOURCE
    };
    // SAFETY: the range is the slice's; the message is there, so that nothing is waited for.
    check(unsafe {
        ffi::MPI_Recv(
            into.as_mut_ptr().cast(),
            count(into.len())?,
            ffi::RSMPI_UINT8_T,
            source,
            tag,
            ffi::RSMPI_COMM_WORLD,
            ffi::RSMPI_STATUS_IGNORE,
        )
    })?;
    usize::try_from(source).map(Some).map_err(|_| Fault(format!("a message came from rank {source}")))
}

fn null() -> ffi::MPI_Request {
    // SAFETY: a constant of the library.
    unsafe { ffi::RSMPI_REQUEST_NULL }
}

fn count(n: usize) -> Result<c_int, Fault> {
    c_int::try_from(n).map_err(|_| Fault(format!("{n} does not fit a C int")))
}

fn check(code: c_int) -> Result<(), Fault> {
    if code == 0 {
        return Ok(());
    }
    // Open MPI's and MPICH's longest text have 256 and 512 bytes.
    let mut text: [c_char; 1024] = [0; 1024];
    let mut length: c_int = 0;
    // SAFETY: there is more room than MPI_MAX_ERROR_STRING.
    let known = unsafe { ffi::MPI_Error_string(code, ptr::from_mut(&mut text).cast(), &mut length) } == 0;
    let bytes: Vec<u8> = text.iter().take(usize::try_from(length).unwrap_or(0)).map(|c| c.to_ne_bytes()[0]).collect();
    let text = String::from_utf8_lossy(&bytes);
    // MPICH says a stack of calls, a line each; the last is the cause.
    let cause = text.lines().map(str::trim).rfind(|line| !line.is_empty()).filter(|_| known);
    Err(Fault(cause.map_or_else(|| format!("MPI error {code}"), str::to_string)))
}
