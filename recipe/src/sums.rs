//! Sums that tell whether a file is the one that it was, and read little of a large one.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of one place that is looked at.
const PLACE: u64 = 4096;
/// Places that are looked at; files of no more than so many are read whole.
const PLACES: u64 = 256;

/// CRC-32 of a file's length and of its bytes: all of them up to 1 MiB, of larger files 256 places of 4 KiB, evenly spaced,
/// its beginning and its end among them.
///
/// Errors: `File` if the system refuses.
pub fn of_file(path: &Path) -> Result<u32> {
    let fail = |why| Error::file(path, why);
    let mut file = File::open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    let mut sum = crc32fast::Hasher::new();
    sum.update(&length.to_le_bytes());
    let whole = length <= PLACE * PLACES;
    let mut bytes = Vec::new();
    for place in 0..if whole { 1 } else { PLACES } {
        // In 128 bits: a file may be large.
        let start =
            u128::from(length - if whole { length } else { PLACE }) * u128::from(place) / u128::from(PLACES - 1);
        file.seek(SeekFrom::Start(start as u64)).map_err(fail)?;
        bytes.clear();
        (&mut file).take(if whole { length } else { PLACE }).read_to_end(&mut bytes).map_err(fail)?;
        sum.update(&bytes);
    }
    Ok(sum.finalize())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::of_file;

    #[test]
    fn what_is_looked_at_counts() {
        let path = std::env::temp_dir().join(format!("omchat-sums-{}", std::process::id()));
        let mut seen = std::collections::BTreeSet::new();
        for length in [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20] {
            let mut bytes = vec![7u8; length];
            for change in [None, Some(0), Some(1), Some(length.saturating_sub(1))] {
                match change {
                    Some(at) if at < length => bytes[at] ^= 1,
                    Some(_) => continue,
                    None => {}
                }
                std::fs::write(&path, &bytes).unwrap();
                let sum = of_file(&path).unwrap();
                assert_eq!(sum, of_file(&path).unwrap());
                assert!(length < 3 || seen.insert(sum), "{length} bytes, {change:?}");
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(of_file(&path).is_err());
    }
}
