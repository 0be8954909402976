//! Open MPI's help texts, kept from hanging the rank that would show one.
//!
//! Where a rank dies, Open MPI 4 hands "peer hung up" to its launcher and waits for an answer inside of the call that
//! found it out; but the launcher is ending the run, and never answers. So the texts are named on stderr instead: the
//! library holds its function for them in a variable, `opal_show_help`, which is set here. Other MPIs have no such
//! variable, and are left as they are.

use std::ffi::{CStr, c_char, c_int};
use std::io::Write;

type Show = extern "C" fn(*const c_char, *const c_char, bool) -> c_int;

/// C calls it with more arguments, which the calling conventions of x86-64 and of AArch64 let it ignore.
extern "C" fn show(file: *const c_char, topic: *const c_char, _header: bool) -> c_int {
    if !file.is_null() && !topic.is_null() {
        // SAFETY: the library gives two C strings.
        let (file, topic) = unsafe { (CStr::from_ptr(file), CStr::from_ptr(topic)) };
        // Stderr may be closed by now: not an error of this rank.
        let _ = writeln!(std::io::stderr(), "Open MPI: {} ({})", topic.to_string_lossy(), file.to_string_lossy());
    }
    0
}

/// From now on help texts are named on stderr. Call it after MPI started: what keeps it from starting is shown in full.
pub(super) fn name_only() {
    if !cfg!(any(target_arch = "x86_64", all(target_arch = "aarch64", target_os = "linux"))) {
        return;
    }
    // SAFETY: a variable of the library, of this type; MPI is called by this thread alone.
    unsafe {
        let place = libc::dlsym(libc::RTLD_DEFAULT, c"opal_show_help".as_ptr()).cast::<Show>();
        if !place.is_null() {
            place.write(show);
        }
    }
}
