//! io_uring, as features of the report.

use netio::probe::{Offer, probe};

use super::Feature;

const WITHOUT: &str = "the network path uses ordinary system calls";
const PARTS_WITHOUT: &str = "the network path uses more requests or interrupts per packet";

/// What io_uring offers. None of it is needed for anything but the network path.
pub(super) fn features() -> Vec<Feature> {
    let Offer { setup, defer_taskrun, buffer_rings, multishot_receive, zero_copy_send } = probe();
    let ring = Feature {
        name: "io_uring",
        present: setup.is_ok(),
        seen: setup.map_or_else(|error| error.to_string(), |()| "works".to_owned()),
        without: WITHOUT,
        advice: "sysctl kernel.io_uring_disabled=0; in a container allow it in its seccomp profile",
    };
    let part = |name, present, advice| Feature {
        name,
        present,
        seen: if present { "works" } else { "not offered" }.to_owned(),
        without: PARTS_WITHOUT,
        advice,
    };
    vec![
        ring,
        part("io_uring deferred completions", defer_taskrun, "Linux 6.1 or later"),
        part("io_uring buffer rings", buffer_rings, "Linux 5.19 or later"),
        part("io_uring multishot receive", multishot_receive, "Linux 6.0 or later"),
        part("io_uring zero-copy send", zero_copy_send, "Linux 6.0 or later"),
    ]
}
