//! What fuzz targets call: the parts that read what others have written.

use std::path::Path;

use crate::feed::Feed as _;
use crate::recording::ReplayFeed;

/// Reads a recording and replays some of it.
pub fn recording(file: &Path) {
    let Ok(mut feed) = ReplayFeed::load(&[file.to_owned()], "f.", 0.0, 2, None) else { return };
    let channels = u32::try_from(feed.channels().len()).expect("few channels");
    let mut payload = Vec::new();
    for _ in 0..1000 {
        payload.clear();
        let Some((channel, _)) = feed.next(&mut payload) else { return };
        assert!(channel < channels && !payload.is_empty());
    }
}
