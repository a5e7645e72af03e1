//! What this process is called where several serve together.

use std::sync::LazyLock;

use super::schema::Server;

/// Bytes of a name.
pub(super) const NODE_BYTES_MAX: usize = 64;

/// The name of a process that was given none: the machine's, or one by chance. It stays while the process runs.
static UNNAMED: LazyLock<String> = LazyLock::new(|| {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    match is_name(host) {
        true => host.to_owned(),
        false => format!("node-{:016x}", rand::random::<u64>()),
    }
});

/// Gives it a name where it has none.
pub(super) fn name(server: &mut Server) {
    if server.node_id.is_empty() {
        server.node_id.clone_from(&UNNAMED);
    }
}

/// Whether it can be a name.
pub(super) fn is_name(name: &str) -> bool {
    (1..=NODE_BYTES_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}
