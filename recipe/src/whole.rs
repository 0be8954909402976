//! Files that are there whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Writes a file under another name beside it, and renames it once it is on the disk.
///
/// Errors: what the file system answers; nothing half written is left then.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let write = || {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    let written = write();
    if written.is_err() {
        // What is half written helps nobody; it may not be there at all.
        let _ = std::fs::remove_file(&part);
    }
    written
}
