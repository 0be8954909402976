//! What the tests of data share: a model's senses, and folders that vanish.
#![allow(dead_code, clippy::unwrap_used)]

use omchat_model::OmChatConfig;
use omchat_recipe::document::{Room, Senses};
use omchat_recipe::feed::Options;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

pub fn senses() -> Senses {
    let dir = root().join("models/tiny");
    Senses::from_dir(&dir, &OmChatConfig::from_dir(&dir).unwrap()).unwrap()
}

pub fn options(positions: usize, tiles: usize, seed: u64, threads: usize) -> Options {
    Options { room: Room { positions, tiles }, seed, threads }
}

/// A folder that is removed with the value.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("omchat-data-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Two pictures and a video of the repository under short names.
    pub fn sights(&self) -> &Folder {
        for (from, to) in [
            ("tests/fixtures/pictures/coins.png", "coins.png"),
            ("tests/fixtures/pictures/page.png", "page.png"),
            ("models/tiny/ball.gif", "ball.gif"),
        ] {
            std::fs::copy(root().join(from), self.0.join(to)).unwrap();
        }
        self
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
