//! Tiles of real pictures against Pillow's, sample for sample.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may end at the first surprise

use omchat_model::OmChatConfig;
use omchat_model::picture::Picture;
use omchat_model::tiler::{TileMode, Tiler};
use safetensors::SafeTensors;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

#[test]
fn tiles_are_pillows() {
    let dir = fixture("tiny-b");
    let tiler = Tiler::from_dir(&dir, &OmChatConfig::from_dir(&dir).unwrap()).unwrap();
    for (case, pictures) in [("page", &["page"][..]), ("coins", &["coins"]), ("several", &["page", "coins"])] {
        let mut have = Vec::new();
        for name in pictures {
            let picture = Picture::open(&fixture(&format!("pictures/{name}.png"))).unwrap();
            let tiles = tiler.cut(&picture, TileMode::AnyRes).unwrap();
            assert_eq!(tiles.count(), tiler.count(picture.width, picture.height, TileMode::AnyRes));
            have.extend(tiler.pixels(&tiles, 0..tiles.count()));
        }
        let bytes = std::fs::read(dir.join(format!("encode/{case}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let want = file.tensor("pixel_values").unwrap();
        let want: Vec<f32> = want.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(have.len(), want.len());
        let want = planes(&want, tiler.tile());
        let worst = have.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst <= 1e-6, "{case}: {worst}");
    }
}

/// The recorded tiles as [tiles, 3, S, S]. The files say so, but their bytes lie as [tiles, S, S, 3]: they were
/// written from a transposed view without making it contiguous.
fn planes(recorded: &[f32], size: usize) -> Vec<f32> {
    let tiles = recorded.chunks_exact(3 * size * size);
    tiles.flat_map(|tile| (0..3).flat_map(|channel| tile.iter().skip(channel).step_by(3).copied())).collect()
}
