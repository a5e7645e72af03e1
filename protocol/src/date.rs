//! Times as they are written in JSON.

use time::OffsetDateTime;

fn at(unix_ms: u64) -> OffsetDateTime {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    // Years beyond 9999 are nobody's.
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// `2025-05-12T11:54:20.123Z`.
pub fn iso_millis(unix_ms: u64) -> String {
    let t = at(unix_ms);
    let (date, month, millis) = (t.date(), u8::from(t.month()), unix_ms % 1000);
    let (hour, minute, second) = t.to_hms();
    let (year, day) = (date.year(), date.day());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// `2025-05-12T11:54:20+00:00`.
pub fn iso_seconds(unix_ms: u64) -> String {
    let mut text = iso_millis(unix_ms);
    text.truncate(text.len().saturating_sub(5));
    text.push_str("+00:00");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_existing_clients_read_them() {
        assert_eq!(iso_millis(1_747_050_860_007), "2025-05-12T11:54:20.007Z");
        assert_eq!(iso_seconds(1_747_050_860_007), "2025-05-12T11:54:20+00:00");
        assert_eq!(iso_millis(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(iso_seconds(u64::MAX), "1970-01-01T00:00:00+00:00");
    }

    #[test]
    fn moments_are_written_as_the_calendar_has_them() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_001, "2024-02-29T23:59:59.001Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(iso_millis(unix_ms), text);
        }
    }
}
