//! Answers: status, fields, and which bytes of which file.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;

use crate::files::{Files, Kept};
use crate::request::{Request, path_of};

/// What is sent.
#[derive(Debug)]
pub struct Answer {
    /// Up to the empty line.
    pub head: String,
    bytes: Arc<[u8]>,
    range: Range<usize>,
    /// The connection ends with it.
    pub closes: bool,
}

impl Answer {
    /// Of what is no request: the connection ends, since nobody knows where the next one begins.
    #[must_use]
    pub fn refusal(code: u16) -> Self {
        plain(code, false, "", true)
    }

    /// What follows the head.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

/// The answer to a request.
#[must_use]
pub fn to(request: &Request<'_>, files: &Files) -> Answer {
    let closes = !request.keeps;
    let Some(path) = path_of(request.target) else {
        return plain(404, request.is_head, "", closes);
    };
    match files.get(&path) {
        Ok(kept) => with_file(request, &path, &kept),
        Err(error) if error.kind() == ErrorKind::IsADirectory && !path.is_empty() => {
            // Links of the page are to be looked for in the folder.
            let to = location(request.target);
            plain(301, request.is_head, &format!("Location: {to}\r\n"), closes)
        }
        Err(error) => {
            let code = match error.kind() {
                ErrorKind::PermissionDenied => 403,
                ErrorKind::FileTooLarge => 500,
                _ => 404,
            };
            plain(code, request.is_head, "", closes)
        }
    }
}

/// The same with a slash behind the path. One slash in front: two would name a host.
fn location(target: &str) -> String {
    let end = target.find(['?', '#']).unwrap_or(target.len());
    format!("/{}/{}", target[..end].trim_matches('/'), &target[end..])
}

fn with_file(request: &Request<'_>, path: &str, kept: &Kept) -> Answer {
    let (tag, closes, len) = (kept.version.tag(), !request.keeps, kept.bytes.len());
    let changed = date(kept.version.changed_s());
    let validators = format!("ETag: {tag}\r\nLast-Modified: {changed}\r\nAccept-Ranges: bytes\r\n");
    if request.if_none_match.is_some_and(|tags| has_tag(tags, &tag)) {
        let head = head(304, &validators, None, closes);
        return Answer { head, bytes: Arc::new([]), range: 0..0, closes };
    }
    let is_same = request.if_range.is_none_or(|known| known == tag);
    let wanted = request.range.filter(|_| is_same && !request.is_head);
    let (code, range) = match wanted.map(|wanted| wanted.within(len)) {
        None => (200, 0..len),
        Some(Some(range)) => (206, range),
        Some(None) => {
            let more = format!("Content-Range: bytes */{len}\r\n");
            return plain(416, request.is_head, &more, closes);
        }
    };
    let mut fields = validators;
    if code == 206 {
        fields += &format!("Content-Range: bytes {}-{}/{len}\r\n", range.start, range.end - 1);
    }
    fields += &format!("Content-Type: {}\r\n", type_of(path));
    let head = head(code, &fields, Some(range.len()), closes);
    let range = if request.is_head { 0..0 } else { range };
    Answer { head, bytes: kept.bytes.clone(), range, closes }
}

/// One that says its status only.
fn plain(code: u16, is_head: bool, more: &str, closes: bool) -> Answer {
    let body = format!("{code} {}\n", reason(code));
    let allow = if code == 405 { "Allow: GET, HEAD\r\n" } else { "" };
    let fields = format!("{allow}{more}Content-Type: text/plain\r\n");
    let head = head(code, &fields, Some(body.len()), closes);
    let range = if is_head { 0..0 } else { 0..body.len() };
    Answer { head, bytes: body.into_bytes().into(), range, closes }
}

fn head(code: u16, fields: &str, len: Option<usize>, closes: bool) -> String {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    let now = date(since.map_or(0, |since| since.as_secs() as i64));
    let len = len.map_or(String::new(), |len| format!("Content-Length: {len}\r\n"));
    let stays = if closes { "close" } else { "keep-alive" };
    let reason = reason(code);
    format!("HTTP/1.1 {code} {reason}\r\nDate: {now}\r\n{fields}{len}Connection: {stays}\r\n\r\n")
}

fn has_tag(tags: &str, tag: &str) -> bool {
    let same = |one: &str| one.trim().trim_start_matches("W/") == tag;
    tags.trim() == "*" || tags.split(',').any(same)
}

const fn reason(code: u16) -> &'static str {
    match code {
        200 => "OK",
        206 => "Partial Content",
        301 => "Moved Permanently",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}

fn type_of(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, end)| end) {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "md" => "text/plain; charset=utf-8",
        "json" => "application/json",
        "xml" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        _ => "application/octet-stream",
    }
}

/// A time of day, in seconds, as HTTP writes it.
#[must_use]
pub fn date(seconds: i64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years that begin in March, so that the day that comes and goes is the last one.
    let days_since = days + 719_468;
    let (era, of_era) = (days_since.div_euclid(146_097), days_since.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12;
    let year = year_of_era + era * 400 + i64::from(month < 2);
    let [weekday, month] = [DAYS[days.rem_euclid(7) as usize], MONTHS[month as usize]];
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
mod tests {
    use super::{date, has_tag, location};

    #[test]
    fn dates_are_written_as_http_has_them() {
        assert_eq!(date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(date(1_767_225_599), "Wed, 31 Dec 2025 23:59:59 GMT");
    }

    #[test]
    fn tags_are_found_in_lists_and_folders_get_a_slash() {
        assert!(has_tag("\"a\", W/\"b\"", "\"b\"") && has_tag("*", "\"b\""));
        assert!(!has_tag("\"a\"", "\"b\""));
        assert_eq!(location("//evil/x?y"), "/evil/x/?y");
    }
}
