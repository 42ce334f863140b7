//! What clamps hold for, beside the same said in a plainer way.

use libos::clamps::{CLAMPED, Clamp, NARROWED, TEE, clamp_of, clamp_word, handle_of, process_name};
use libos::signals::MUST_DECIDE;
use proptest::prelude::*;

fn of_paths(paths: &[&str]) -> Box<Clamp> {
    let clamp = Box::<Clamp>::default();
    paths.iter().for_each(|path| assert!(clamp.add_path(path.as_bytes())));
    clamp
}

fn holds(above: &str, folder: &str, path: &str) -> bool {
    of_paths(&[above]).holds_path(folder.as_bytes(), path.as_bytes())
}

#[test]
fn a_folder_is_above_what_begins_with_its_parts() {
    for path in ["/srv", "/srv/", "/srv/a", "//srv//a/", "/./srv/a", "/x/../srv/a", "/../srv"] {
        assert!(holds("/srv", "/", path), "{path}");
    }
    for path in ["/", "/srv2", "/sr", "/a/srv", "/srv/..", "/srv/../etc", "/srv/a/../../b", ""] {
        assert!(!holds("/srv", "/", path), "{path}");
    }
    // A file is only itself; all is below the root.
    assert!(holds("/etc/passwd", "/", "/etc/passwd") && !holds("/etc/passwd", "/", "/etc/passwd-"));
    assert!(holds("/", "/", "/") && holds("/", "/a", "b"));
    // Relative to a folder, and out of it.
    assert!(holds("/srv/www", "/srv", "www/a") && holds("/srv/www", "/srv/www", "a/b"));
    assert!(holds("/srv", "/srv/www", "..") && !holds("/srv/www", "/srv/www", "../a"));
    assert!(holds("/srv/www", "/srv/www/a", "") && !holds("/srv", "/etc", "srv"));
    // Comes back to where it was.
    assert!(holds("/a/b", "/", "/a/b/c/../../b/d") && !holds("/a/b", "/", "/a/b/c/../../c/b"));
}

#[test]
fn one_of_each_kind_has_to_hold() {
    let clamp = of_paths(&["/srv", "/etc/ssl"]);
    assert!(clamp.holds_path(b"/", b"/srv/a") && clamp.holds_path(b"/", b"/etc/ssl/x"));
    assert!(!clamp.holds_path(b"/", b"/etc/s") && clamp.has_paths());
    // Of the others it says nothing.
    assert!(!clamp.has_descriptors() && clamp.holds_process(1, process_name(b"x")));
    assert!(clamp.add_descriptors(0, 2) && clamp.add_descriptors(7, 7));
    let held: Vec<u32> = (0..10).filter(|fd| clamp.holds_descriptor(*fd)).collect();
    assert_eq!(held, [0, 1, 2, 7]);
    assert!(!clamp.holds_descriptor(u32::MAX));
    assert!(clamp.add_name(process_name(b"nginx")) && clamp.add_pid(77));
    assert!(clamp.holds_process(1, process_name(b"nginx")));
    assert!(clamp.holds_process(77, process_name(b"nginx2")));
    assert!(!clamp.holds_process(78, process_name(b"ngin")));
    // As long as the kernel keeps them.
    assert_eq!(process_name(b"a-very-long-name-of-a"), process_name(b"a-very-long-nam"));
    clamp.clear();
    assert!(!clamp.has_paths() && !clamp.has_descriptors());
    assert!(clamp.holds_process(78, process_name(b"ngin")));
}

#[test]
fn what_does_not_fit_is_said() {
    let clamp = Box::<Clamp>::default();
    assert!(!clamp.add_path(&[b'/'; 4096]));
    assert!(clamp.add_path(&[b'/'; 4095]) && !clamp.add_path(b"/"));
    assert!((0..16).all(|fd| clamp.add_descriptors(fd, fd)) && !clamp.add_descriptors(16, 16));
    assert!((1..17).all(|pid| clamp.add_pid(pid)) && !clamp.add_pid(17));
    assert!((0..16).all(|_| clamp.add_name(process_name(b"x"))));
    assert!(!clamp.add_name(process_name(b"x")));
}

/// A path with all that it may have.
fn paths() -> impl Strategy<Value = String> {
    let part = prop_oneof![Just("a"), Just("b"), Just("aa"), Just("."), Just(".."), Just("")];
    (any::<bool>(), prop::collection::vec(part, 0..8)).prop_map(|(absolute, parts)| {
        format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"))
    })
}

/// What an absolute path comes to, written down.
fn worked_out(path: &str) -> Vec<&str> {
    path.split('/').fold(Vec::new(), |mut parts, part| {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
        parts
    })
}

proptest! {
    #[test]
    fn paths_are_compared_as_if_they_were_written_out(
        above in paths(), folder in paths(), path in paths(),
    ) {
        let (above, folder) = (worked_out(&above), format!("/{folder}"));
        let whole = if path.starts_with('/') { path.clone() } else { format!("{folder}/{path}") };
        let expected = worked_out(&whole).starts_with(&above);
        prop_assert_eq!(holds(&format!("/{}", above.join("/")), &folder, &path), expected);
    }

    #[test]
    fn a_word_says_what_was_put_into_it(
        generation in any::<u32>(), row in 0u64..2048, number in 0usize..32, flags in 0u64..8,
    ) {
        let handle = u64::from(generation) << 32 | row;
        let flag = |bit: u32, word: u64| if flags >> bit & 1 == 1 { word } else { 0 };
        let word = handle | flag(0, TEE) | flag(1, NARROWED) | flag(2, MUST_DECIDE);
        prop_assert_eq!(clamp_of(word), None);
        let clamped = word | clamp_word(number);
        prop_assert_eq!((handle_of(word), handle_of(clamped)), (handle, handle));
        prop_assert_eq!((clamp_of(clamped), clamped & CLAMPED), (Some(number), CLAMPED));
        prop_assert_eq!(clamped & TEE, word & TEE);
    }
}
