//! What fuzz targets call: the parts that read what others have written.

use std::path::Path;

use crate::feed::Feed as _;
use crate::recording::{How, ReplayFeed};

/// Reads a recording and replays some of it.
pub fn recording(file: &Path) {
    let how =
        How { prefix: "f.", speed: 0.0, clones: 2, seconds: None, max_pause: 60.0, unit: None };
    let Ok(mut feed) = ReplayFeed::load(&[file.to_owned()], &how) else { return };
    let channels = u32::try_from(feed.channels().len()).expect("few channels");
    let mut payload = Vec::new();
    for _ in 0..1000 {
        payload.clear();
        let Some((channel, _)) = feed.next(&mut payload) else { return };
        assert!(channel < channels && !payload.is_empty());
    }
}
