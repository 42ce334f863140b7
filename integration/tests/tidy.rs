//! The rules of this repository.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).unwrap();
                let shown = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((shown, text));
            }
        }
    }
    assert!(found.len() > 30);
    found
}

/// Lines of `text` that break `rule`.
fn breaks(text: &str, rule: impl Fn(&str) -> bool) -> Vec<usize> {
    text.lines().enumerate().filter(|(_, line)| rule(line)).map(|(index, _)| index + 1).collect()
}

#[test]
fn assembly_lies_in_arch_only() {
    let rule = |line: &str| line.contains("asm!(");
    assert_eq!(breaks("a\nnaked_asm!(", rule), [2]);
    for (path, text) in sources() {
        // The extension that faults on purpose does so by instruction.
        let exempt = path.contains("/arch/")
            || path.starts_with("integration/faulty/")
            || path.ends_with("tidy.rs");
        assert!(exempt || breaks(&text, rule).is_empty(), "{path}");
    }
}

#[test]
fn nothing_is_left_for_later() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimpl", "emented!")];
    let rule = |line: &str| words.iter().any(|word| line.contains(word));
    assert_eq!(breaks(concat!("x // TO", "DO later"), rule), [1]);
    for (path, text) in sources() {
        assert!(breaks(&text, rule).is_empty(), "{path}: {:?}", breaks(&text, rule));
    }
}

#[test]
fn every_unsafe_block_is_argued() {
    let unargued = |text: &str| -> Vec<usize> {
        let lines: Vec<&str> = text.lines().collect();
        (0..lines.len())
            .filter(|&at| lines[at].contains(concat!("unsafe", " {")))
            .filter(|&at| !lines[at].trim_start().starts_with("//"))
            .filter(|&at| !lines[at.saturating_sub(12)..at].iter().any(|l| l.contains("SAFETY")))
            .map(|at| at + 1)
            .collect()
    };
    assert_eq!(unargued(concat!("let x = unsafe", " { 1 };")), [1]);
    for (path, text) in sources() {
        assert!(
            path.contains("macros/") || unargued(&text).is_empty(),
            "{path}: {:?}",
            unargued(&text)
        );
    }
}

#[test]
fn files_stay_readable() {
    for (path, text) in sources() {
        assert!(text.lines().count() <= 800, "{path} has outgrown a file");
        assert!(text.starts_with("//!"), "{path} does not say what it is");
        assert!(!path.ends_with("mod.rs"), "{path}");
    }
}

#[test]
fn edges_go_one_way() {
    let allowed = [
        ("ext-api", &[][..]),
        ("libos", &["ext-api"]),
        ("netio", &["ext-api", "libos"]),
        ("sbx-launcher", &["ext-api", "libos", "netio"]),
    ];
    for (name, may) in allowed {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        for ours in ["ext-api", "libos", "netio", "sbx-launcher", "integration"] {
            let names = manifest.lines().any(|line| line.starts_with(&format!("{ours} = ")));
            assert!(!names || may.contains(&ours), "{name} must not depend on {ours}");
        }
    }
}

#[test]
fn the_top_level_is_fixed() {
    let known = [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "rustfmt.toml",
        "libos",
        "sbx-launcher",
        "ext-api",
        "netio",
        "examples",
        "integration",
        "target",
    ];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(name.starts_with('.') || known.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn every_dependency_is_pinned_with_its_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = manifest.split("[workspace.dependencies]").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let lines: Vec<&str> = section.lines().filter(|line| !line.is_empty()).collect();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| !line.starts_with('#')) {
        assert!(line.contains("\"=") || line.contains("path = "), "not pinned: {line}");
        let group = lines[..index].iter().rev().find(|line| line.starts_with('#'));
        assert!(group.is_some(), "no reason: {line}");
    }
}

#[test]
fn every_example_is_explained() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(Path::new(&path).join("README.md").is_file(), "{name} has no README");
        assert!(readme.contains(&name), "README.md does not name {name}");
    }
}

#[test]
fn other_languages_have_the_same_version() {
    let version = ext_api::abi::ABI_VERSION;
    for (path, line) in [
        ("python/sbx.py", format!("_ABI_VERSION = {version}\n")),
        ("c/sbx.h", format!("#define SBX_ABI_VERSION {version}u\n")),
        ("c/sbx_ext.h", format!("sbx_magic, {version}, ")),
    ] {
        let text = fs::read_to_string(root().join("ext-api").join(path)).unwrap();
        assert!(text.contains(&line), "{path} does not say {line:?}");
    }
}
