//! Sends back what comes, over UDP and TCP: the bytes go out of the buffer that the kernel put them into.

use ext_api::prelude::*;

/// The extension `echo`.
#[extension(name = "echo", heap = "2M", kill_safe)]
pub mod echo {
    use ext_api::net::{Packet, Stream, Verdict};

    #[on(udp = 9000)]
    fn datagram(packet: &mut Packet<'_>) -> Verdict {
        packet.reply_in_place(packet.bytes().len())
    }

    #[on(tcp = 9000)]
    fn stream(stream: &mut Stream<'_>) -> Verdict {
        stream.reply_in_place(stream.bytes().len())
    }
}
