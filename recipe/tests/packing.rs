//! Packs by formulas: every document whole, seeing itself alone; and how full packs are.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Folder, senses};
use omchat_model::splice::Slot;
use omchat_model::tiler::Tiles;
use omchat_recipe::document::{Document, Reader, Room};
use omchat_recipe::pack::{Origin, Pack};
use omchat_recipe::packer::Packer;
use omchat_recipe::spec::{Dataset, Labelling, Layout};
use proptest::prelude::*;

const PER_TILE: usize = 3;
const PAD: u32 = 77;

/// Document `n`: tiles first, then words; ids and labels tell which document and place they are.
fn document(n: usize, words: usize, tiles: usize) -> Document {
    let rows = (0..tiles * PER_TILE).map(|row| Slot::Image(row as u32));
    let slots: Vec<Slot> = rows.chain((0..words).map(|w| Slot::Text((n * 1000 + w) as u32))).collect();
    let labels = (0..slots.len()).map(|t| if t + 1 < slots.len() { (n * 7 + t) as i32 } else { -100 }).collect();
    let origin = Origin { dataset: "d".into(), shard: 0, record: n as u64, offset: 0 };
    let tile = |t: usize| Tiles { size: 1, grid: (1, 1), rgb: vec![n as u8, t as u8, 0] };
    Document { origin, slots, labels, tiles: (0..tiles).map(tile).collect() }
}

fn pack_all(documents: &[Document], room: Room) -> Vec<Pack> {
    let mut packer = Packer::new(room, PER_TILE, PAD).unwrap();
    let mut packs = vec![];
    for document in documents {
        packs.extend(packer.push(document.clone()).unwrap());
    }
    packs.extend(std::iter::from_fn(|| packer.finish()));
    packs
}

fn check(pack: &Pack, documents: &[Document], room: Room) {
    let t = room.positions;
    assert!(pack.tile_count() <= room.tiles);
    let lengths =
        [pack.slots.len(), pack.labels.len(), pack.positions.len(), pack.lo.len(), pack.hi.len(), pack.document.len()];
    assert_eq!(lengths, [t; 6]);
    let mut start = 0;
    let mut tile = 0;
    for (number, part) in pack.parts.iter().enumerate() {
        let own = &documents[part.origin.record as usize];
        assert_eq!(part.range, start..start + own.slots.len());
        for (i, at) in part.range.clone().enumerate() {
            let slot = match own.slots[i] {
                Slot::Image(row) => Slot::Image(row + (tile * PER_TILE) as u32),
                text => text,
            };
            assert_eq!((pack.slots[at], pack.labels[at]), (slot, own.labels[i]));
            assert_eq!((pack.lo[at], pack.hi[at]), (start as i32, at as i32));
            assert_eq!((pack.positions[at], pack.document[at]), (i as u32, number as i32));
        }
        assert_eq!(pack.tiles[tile..tile + own.tiles.len()], own.tiles);
        tile += own.tiles.len();
        start = part.range.end;
    }
    assert_eq!(tile, pack.tiles.len());
    for at in start..t {
        assert_eq!((pack.slots[at], pack.labels[at], pack.document[at]), (Slot::Text(PAD), -100, -1));
        assert_eq!((pack.lo[at], pack.hi[at]), (at as i32, at as i32));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_document_is_packed_whole_and_once(
        t in 1usize..90,
        most in 0usize..5,
        drawn in proptest::collection::vec((1usize..90, 0usize..5), 0..150),
    ) {
        let room = Room { positions: t, tiles: most };
        let fits = |(words, tiles): &(usize, usize)| words + tiles * PER_TILE <= t && *tiles <= most;
        let documents: Vec<Document> =
            drawn.iter().filter(|d| fits(d)).enumerate().map(|(n, d)| document(n, d.0, d.1)).collect();
        let packs = pack_all(&documents, room);
        packs.iter().for_each(|pack| check(pack, &documents, room));
        let mut seen: Vec<u64> = packs.iter().flat_map(|p| p.parts.iter().map(|part| part.origin.record)).collect();
        seen.sort();
        prop_assert_eq!(seen, (0..documents.len() as u64).collect::<Vec<_>>());
        prop_assert_eq!(&packs, &pack_all(&documents, room));
    }

    #[test]
    fn packs_are_full(lengths in proptest::collection::vec(1usize..=500, 600..900)) {
        let documents: Vec<Document> = lengths.iter().enumerate().map(|(n, l)| document(n, *l, 0)).collect();
        let mut packer = Packer::new(Room { positions: 1000, tiles: 0 }, PER_TILE, PAD).unwrap();
        let packs: Vec<Pack> = documents.into_iter().filter_map(|d| packer.push(d).unwrap()).collect();
        let fill = packs.iter().map(Pack::fill).sum::<f64>() / packs.len() as f64;
        prop_assert!(fill > 0.95, "{}", fill);
    }
}

#[test]
fn what_no_pack_holds_is_refused() {
    let mut packer = Packer::new(Room { positions: 10, tiles: 1 }, PER_TILE, PAD).unwrap();
    assert!(packer.push(document(0, 11, 0)).unwrap_err().to_string().contains("11 positions"));
    assert!(packer.push(document(0, 1, 2)).is_err() && packer.push(document(0, 0, 0)).is_err());
    assert!(Packer::new(Room { positions: 0, tiles: 1 }, PER_TILE, PAD).is_err());
}

/// A pack that nothing fits into goes out though others are always fuller.
#[test]
fn no_document_waits_for_ever() {
    let mut packer = Packer::new(Room { positions: 100, tiles: 1 }, PER_TILE, PAD).unwrap();
    assert!(packer.push(document(0, 60, 1)).unwrap().is_none());
    let mut packs = (1..400).filter_map(|n| packer.push(document(n, 99, 0)).unwrap());
    let at = packs.position(|pack| pack.parts[0].origin.record == 0).unwrap();
    assert!(at < 16, "{at}");
    assert!(packer.push(document(0, 100, 0)).unwrap().unwrap().fill() == 1.0, "a full pack does not wait");
}

/// A long text is cut, and the pieces are the text.
#[test]
fn a_long_text_is_cut() {
    let folder = Folder::new();
    let text = "The quick brown fox. ".repeat(40);
    let set = Dataset::new("t", folder.write("t.txt", &text), Layout::Text, Labelling::Pretrain);
    let senses = senses();
    let ids: Vec<u32> = senses.tokenizer.encode(&text).unwrap().into_iter().chain([0]).collect();
    for positions in [1, 7, 64, ids.len() - 1, ids.len(), ids.len() + 1] {
        let reader = Reader::open(&set, &senses, Room { positions, tiles: 0 }).unwrap();
        let pieces = reader.read(0, 0).unwrap().unwrap();
        assert_eq!(pieces.len(), ids.len().div_ceil(positions));
        let slots: Vec<Slot> = pieces.iter().flat_map(|p| p.slots.clone()).collect();
        assert_eq!(slots, ids.iter().map(|id| Slot::Text(*id)).collect::<Vec<_>>());
        for (n, piece) in pieces.iter().enumerate() {
            assert_eq!(piece.origin.offset, (n * positions) as u64);
            let own = &ids[n * positions..(n * positions + piece.slots.len())];
            let want: Vec<i32> = own[1..].iter().map(|id| *id as i32).chain([-100]).collect();
            assert_eq!(piece.labels, want);
        }
    }
}
