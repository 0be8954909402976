//! NCCL itself, as far as a machine without a GPU goes: its library is found, its functions are there, it says its version;
//! whatever is missing is an error that says what and how to mend it, and never a panic.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_runtime::collective::fabric::Fabric;
use omchat_runtime::collective::{Nccl, NcclError, nccl};
use std::path::PathBuf;

/// A library of this machine: that of `OMCHAT_NCCL_LIB`, the loader's, or one that PyTorch brought for the peers' bench.
fn library() -> Option<String> {
    if let Ok(name) = std::env::var("OMCHAT_NCCL_LIB") {
        return Some(name);
    }
    let kept = std::env::var("HOME").map_or_else(|_| PathBuf::from("/root"), PathBuf::from).join(".cache/omchat");
    let brought = std::fs::read_dir(kept.join("venv-peers/lib")).into_iter().flatten().flatten();
    let mut names: Vec<String> = ["libnccl.so.2", "libnccl.so"].map(String::from).to_vec();
    names.extend(brought.map(|d| d.path().join("site-packages/nvidia/nccl/lib/libnccl.so.2").display().to_string()));
    names.into_iter().find(|n| !matches!(Nccl::found_in(std::slice::from_ref(n)), Err(NcclError::Absent { .. })))
}

#[test]
fn a_library_says_its_version() {
    let Some(name) = library() else {
        println!("skipped: no libnccl on this machine (OMCHAT_NCCL_LIB can name one)");
        return;
    };
    let version = Nccl::found_in(std::slice::from_ref(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let numbers: Vec<u32> = version.split('.').map(|n| n.parse().unwrap()).collect();
    assert!(numbers.len() == 3 && (numbers[0], numbers[1]) >= (2, 14), "{name} says {version}");
}

#[test]
fn what_is_missing_is_named_with_its_mend() {
    let nowhere = ["/nowhere/libnccl.so.2".to_string(), "libnccl-of-nobody.so".to_string()];
    let error = Nccl::found_in(&nowhere).unwrap_err();
    assert!(matches!(error, NcclError::Absent { .. }));
    let text = error.to_string();
    assert!(nowhere.iter().all(|n| text.contains(n.as_str())), "{text}");
    assert!(text.contains("libnccl2") && text.contains("OMCHAT_NCCL_LIB"), "{text}");
}

/// A library that is another.
#[test]
fn a_library_that_is_none_is_refused() {
    for name in ["libm.so.6", "libc.so.6"] {
        match Nccl::found_in(&[name.to_string()]) {
            Err(NcclError::Function { path, function }) => {
                assert_eq!((path.as_str(), function.as_str()), (name, "ncclGetVersion"))
            }
            Err(NcclError::Absent { .. }) => println!("skipped: no {name} here"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let file = std::env::temp_dir().join(format!("omchat-no-library-{}.so", std::process::id()));
    std::fs::write(&file, "not a library").unwrap();
    assert!(matches!(Nccl::found_in(&[file.display().to_string()]), Err(NcclError::Absent { .. })));
    std::fs::remove_file(file).unwrap();
}

/// With a library and no GPU every call says so; with a GPU a rank can name its device and the communicator.
#[test]
fn without_a_gpu_each_call_is_an_error() {
    assert!(nccl().map_or_else(|why| !why.is_empty(), |version| version.contains('.')));
    for number in [0, 1_000_000] {
        match Nccl::open(number) {
            Ok(mut found) => {
                assert_eq!(
                    found.identity().unwrap().len(),
                    16 + std::env::var("NCCL_HOSTID").unwrap_or_default().len()
                );
                let unique = found.unique().unwrap();
                assert_eq!(unique.len(), 128);
                let short = found.join(&unique[..127], 0, 1).unwrap_err();
                assert!(short.to_string().contains("127 bytes"), "{short}");
                found.abort();
            }
            Err(why) => {
                assert!(!why.to_string().is_empty());
                println!("skipped: NCCL on CUDA device {number}: {why}");
            }
        }
    }
}
