//! Files that are there whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Writes a file under another name beside it, and renames it once it is on the disk. A link stays what it is, and so does a
/// pipe or a device: it is written to.
///
/// Errors: what the file system answers; nothing half written is left then.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return std::fs::write(path, bytes);
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::write_whole;

    #[test]
    fn links_and_devices_stay() {
        let folder = std::env::temp_dir().join(format!("omchat-whole-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (file, link) = (folder.join("file"), folder.join("link"));
        std::fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_whole(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        // A link to a device is as near to one as a test may come.
        let null = folder.join("null");
        std::os::unix::fs::symlink("/dev/null", &null).unwrap();
        write_whole(&null, b"gone").unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3, "nothing is left beside");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
