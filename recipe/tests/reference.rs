//! Reference losses: what is read back is what was written, to f16; what does not fit is refused with what differs.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_model::splice::Slot;
use omchat_recipe::Pack;
use omchat_recipe::pack::{Origin, Part};
use omchat_recipe::reference::{Meta, Reference, Scores, Writer, checksum};
use std::path::{Path, PathBuf};

const IGNORE: i32 = -100;

fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reference").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

fn meta() -> Meta {
    let data = [("a", "one"), ("b", "two")].map(|(n, v)| (n.to_string(), serde_json::json!({ "path": v })));
    Meta { tokenizer: "01234567".into(), model: "89abcdef".into(), context: 16, format: "F3".into(), data: data.into() }
}

fn origin(dataset: &str, record: u64, offset: u64) -> Origin {
    Origin { dataset: dataset.into(), shard: 1, record, offset }
}

/// A pack of documents by their labels.
fn pack(documents: &[(Origin, Vec<i32>)]) -> Pack {
    let mut p = Pack::default();
    for (i, (origin, labels)) in documents.iter().enumerate() {
        let start = p.labels.len();
        p.labels.extend(labels);
        p.parts.push(Part { origin: origin.clone(), range: start..p.labels.len() });
        p.document.extend(vec![i as i32; labels.len()]);
    }
    let n = p.labels.len();
    p.slots = vec![Slot::Text(1); n];
    p.positions = vec![0; n];
    p.lo = vec![0; n];
    p.hi = vec![0; n];
    p
}

/// The checksum of a document of those labels.
fn sum(labels: &[i32]) -> u32 {
    checksum(&pack(&[(origin("a", 0, 0), labels.to_vec())]), &(0..labels.len()))
}

#[test]
fn losses_come_back_where_the_labels_are() {
    let dir = folder("back");
    let mut w = Writer::create(&dir, meta()).unwrap();
    w.push(&origin("b", 7, 0), sum(&[3, IGNORE, 4, 5]), &[0.5, 17.03, 3.0]).unwrap();
    w.push(&origin("a", 7, 0), sum(&[IGNORE, 9]), &[1.0]).unwrap();
    w.push(&origin("a", 7, 40), sum(&[IGNORE]), &[]).unwrap();
    assert!(!dir.exists(), "half a cache must not be there");
    assert_eq!(w.finish().unwrap(), (3, 4));
    let r = Reference::open(&dir, &meta()).unwrap();
    assert_eq!(r.documents(), 3);
    let documents = [
        (origin("a", 7, 0), vec![IGNORE, 9]),
        (origin("a", 7, 40), vec![IGNORE]),
        (origin("b", 7, 0), vec![3, IGNORE, 4, 5]),
    ];
    let got = r.of(&pack(&documents)).unwrap();
    // f16 holds 17.03 in steps of 2^-6.
    assert_eq!(got, [0.0, 1.0, 0.0, 0.5, 0.0, 17.03125, 3.0]);
    let e = r.of(&pack(&[(origin("a", 8, 0), vec![1])])).err().unwrap().to_string();
    assert!(e.contains("record 8 of file 1 of `a`") && e.contains("not scored"), "{e}");
    let e = r.of(&pack(&[(origin("a", 7, 0), vec![1, 2])])).err().unwrap().to_string();
    assert!(e.contains("2 labels, 1 were scored"), "{e}");
    // As many labels, of other words.
    let e = r.of(&pack(&[(origin("a", 7, 0), vec![IGNORE, 8])])).err().unwrap().to_string();
    assert!(e.contains("record 7 of file 1 of `a`") && e.contains("other words"), "{e}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = folder("fit");
    Writer::create(&dir, meta()).unwrap().finish().unwrap();
    type Change = fn(&mut Meta);
    // A number that JSON's text rounded is the same number.
    let near = |x: f64| Meta { data: [("a".to_string(), serde_json::json!({ "depth": x }))].into(), ..meta() };
    let (told, dir_of_told) = (near(0.9700000286102295), folder("told"));
    Writer::create(&dir_of_told, told).unwrap().finish().unwrap();
    Reference::open(&dir_of_told, &near(0.9700000286102296)).unwrap();
    assert!(Reference::open(&dir_of_told, &near(0.97)).is_err());
    let cases: [(&str, Change); 4] = [
        ("tokenizer", |m| m.tokenizer = "ffffffff".into()),
        ("context of 16, and 32", |m| m.context = 32),
        ("format F3, and F0", |m| m.format = "F0".into()),
        ("data set `a`", |m| m.data.insert("a".into(), serde_json::json!("other")).map_or((), drop)),
    ];
    for (what, change) in cases {
        let mut want = meta();
        change(&mut want);
        let e = Reference::open(&dir, &want).err().unwrap().to_string();
        assert!(e.contains(what) && e.contains("omchat score"), "{e}");
    }
    let e = Writer::create(&dir, meta()).err().unwrap().to_string();
    assert!(e.contains("there already"), "{e}");
    std::fs::write(dir.join("index.bin"), [0u8; 35]).unwrap();
    let e = Reference::open(&dir, &meta()).err().unwrap().to_string();
    assert!(e.contains("35 bytes"), "{e}");
    let mut row = [0u8; 40];
    row[32] = 1;
    std::fs::write(dir.join("index.bin"), row).unwrap();
    let e = Reference::open(&dir, &meta()).err().unwrap().to_string();
    assert!(e.contains("0 losses, the index asks for 0 + 1"), "{e}");
    let bad = folder("bad");
    let e = Writer::create(&bad, meta()).unwrap().push(&origin("a", 0, 0), 0, &[f32::NAN]).err().unwrap().to_string();
    assert!(e.contains("NaN"), "{e}");
}

#[test]
fn scores_are_counted_by_kind() {
    let loss = [3.0, 1.0, 1.0, 30.0, 0.0, 9.9];
    let reference = [1.0, 1.2, 4.0, 0.0, 20.0, 0.0];
    let labels = [1, 2, 3, 4, 5, IGNORE];
    let s = Scores::of(&loss, &reference, &labels);
    assert_eq!((s.tied, s.loose, s.odd), (0.4, 0.2, 0.4));
    assert_eq!(s.histogram.iter().sum::<u32>(), 5);
    assert_eq!((s.histogram[0], *s.histogram.last().unwrap()), (1, 1));
    // 2.0 lies in the bin from 2.0 to 2.5: the first of 8 bins below 0 is number 1, so bin (2 + 8) / 0.5 + 1.
    assert_eq!(s.histogram[21], 1);
    let mut two = Scores::of(&loss[..2], &reference[..2], &labels[..2]);
    two.add(&Scores::of(&loss[2..], &reference[2..], &labels[2..]));
    assert_eq!(two.histogram, s.histogram);
    assert!((two.tied - s.tied).abs() < 1e-12 && (two.odd - s.odd).abs() < 1e-12);
}
