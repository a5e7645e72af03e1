//! Tokens that nobody may get in with, each next to a good one.

use std::collections::BTreeSet;

use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use super::*;

/// What is tried, by what is wrong with it.
#[derive(Default)]
struct Forged(Vec<(String, String)>);

impl Forged {
    fn add(&mut self, what: impl Into<String>, token: impl Into<String>) {
        self.0.push((what.into(), token.into()));
    }
}

fn hs256() -> Hand {
    Hand::secret(SECRET, Algorithm::HS256)
}

/// Each way to write `none`, or another word, in big and small letters.
fn cases(word: &str) -> Vec<String> {
    let spell = |bits: u32| {
        let letter = |(i, c): (usize, char)| {
            if bits >> i & 1 == 1 { c.to_ascii_uppercase() } else { c }
        };
        word.chars().enumerate().map(letter).collect()
    };
    (0..1 << word.len()).map(spell).collect()
}

fn unsigned(forged: &mut Forged) {
    for issuer in ["https://hs.test", "https://pem.test", "https://jwks.test", "else"] {
        for alg in cases("none") {
            let header = format!("{{\"alg\":\"{alg}\",\"kid\":\"e\"}}");
            let token = hs256().sign(&header, claims(issuer, ""));
            let bare = token.rsplit_once('.').unwrap().0;
            forged.add(format!("{alg} of {issuer} without signature"), format!("{bare}."));
            forged.add(format!("{alg} of {issuer} with one"), token);
        }
    }
    for alg in [
        "\"hs256\"",
        "\"Hs256\"",
        "\"HS256 \"",
        "\" HS256\"",
        "\"HS-256\"",
        "\"HS1\"",
        "\"HS384\"",
        "\"HS512\"",
        "\"\"",
        "\"RS256\"",
        "\"ES256\"",
        "\"EdDSA\"",
        "\"PS256\"",
        "\"ES384\"",
        "\"RS512\"",
        "\"ES256K\"",
        "\"HMAC\"",
        "\"HS256\\u0000\"",
        "null",
        "0",
        "[]",
        "{}",
        "[\"HS256\"]",
        "true",
    ] {
        let header = format!("{{\"alg\":{alg}}}");
        forged.add(format!("alg {alg}"), hs256().sign(header, claims("https://hs.test", "")));
    }
    forged.add("no alg", hs256().sign("{\"typ\":\"JWT\"}", claims("https://hs.test", "")));
}

/// Public keys are known to everybody: nothing may be made of them that signs.
fn public_keys_as_secrets(forged: &mut Forged) {
    for (file, kid) in [("rsa.pub.pem", "r"), ("p256.pub.pem", "e"), ("ed25519.pub.pem", "o")] {
        let text = String::from_utf8(pem(file)).unwrap();
        let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(&body).unwrap();
        let jwk: serde_json::Value = serde_json::from_str(&jwk(file, kid)).unwrap();
        let number = jwk["n"].as_str().or(jwk["x"].as_str()).unwrap().to_owned();
        let raw = URL_SAFE_NO_PAD.decode(&number).unwrap();
        let secrets: [(&str, Vec<u8>); 7] = [
            ("PEM", text.clone().into()),
            ("PEM without line end", text.trim_end().into()),
            ("body of PEM", body.into()),
            ("DER", der),
            ("number of JWK", number.into()),
            ("bytes of JWK", raw),
            ("JWK", jwk.to_string().into()),
        ];
        for (form, secret) in secrets {
            for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
                let hand = Hand::secret(&secret, algorithm);
                for issuer in ["https://pem.test", "https://jwks.test"] {
                    let header = header_with_kid(&format!("{algorithm:?}"), kid);
                    let what = format!("{algorithm:?} with {form} of {file} for {issuer}");
                    forged.add(what, hand.sign(header, claims(issuer, "")));
                }
            }
        }
    }
}

fn keys_of_another_kind(forged: &mut Forged) {
    let hands = [("RS256", Hand::rsa()), ("ES256", Hand::p256()), ("EdDSA", Hand::ed25519())];
    for (signed, hand) in &hands {
        for (kid, said) in [("r", "RS256"), ("e", "ES256"), ("o", "EdDSA")] {
            for issuer in ["https://pem.test", "https://jwks.test", "https://hs.test"] {
                // Local keys have no ids: there the right algorithm is the right key.
                if issuer == "https://pem.test" && *signed == said {
                    continue;
                }
                let fits = issuer == "https://jwks.test" && *signed == said;
                let kid = if fits { "mine" } else { kid };
                let token = hand.sign(header_with_kid(said, kid), claims(issuer, ""));
                forged.add(format!("{signed} that says {said} for {issuer}"), token);
            }
        }
        let other_kid = if *signed == "RS256" { "e" } else { "r" };
        let token = hand.sign(header_with_kid(signed, other_kid), claims("https://jwks.test", ""));
        forged.add(format!("{signed} under another's kid"), token);
        let token = hand.sign(header(signed), claims("https://jwks.test", ""));
        forged.add(format!("{signed} without kid"), token);
    }
    let payload = claims("https://hs.test", "");
    for (what, hand) in [
        ("empty secret", Hand::secret("", Algorithm::HS256)),
        ("guessed secret", Hand::secret("secret", Algorithm::HS256)),
        ("another's secret", Hand::secret(OTHER_SECRET, Algorithm::HS256)),
        ("nobody's secret", Hand::secret(NAMELESS_SECRET, Algorithm::HS256)),
        ("shorter secret", Hand::secret(&SECRET[..SECRET.len() - 1], Algorithm::HS256)),
        ("longer secret", Hand::secret(format!("{SECRET}\n"), Algorithm::HS256)),
        ("secret in another case", Hand::secret(SECRET.to_uppercase(), Algorithm::HS256)),
    ] {
        forged.add(what, hand.sign(header("HS256"), &payload));
    }
    let payload = claims("https://hs512.test", "");
    let weak = Hand::secret(OTHER_SECRET, Algorithm::HS256);
    forged.add("HS256 against a key of HS512", weak.sign(header("HS256"), &payload));
    forged.add("HS256 that says HS512", weak.sign(header("HS512"), &payload));
    let strong = Hand::secret(SECRET, Algorithm::HS512);
    let payload = claims("https://hs.test", "");
    forged.add("HS512 against a key of HS256", strong.sign(header("HS512"), payload));
}

fn headers(forged: &mut Forged) {
    let long = "k".repeat(255);
    let longer = "k".repeat(256);
    let longest = "k".repeat(5000);
    for kid in [
        "../../../../../../dev/null",
        "/dev/null",
        "/proc/sys/kernel/randomize_va_space",
        "file:///dev/null",
        "http://127.0.0.1:1/keys",
        "https://evil.test/keys",
        "https://evil.test/keys#e",
        "mine",
        "e' OR '1'='1",
        "e' UNION SELECT 'hush' --",
        "e; DROP TABLE keys",
        "e\\u0000",
        "\\u0000",
        "",
        "E",
        "e ",
        " e",
        "e",
        "%65",
        "\u{435}",
        "\u{1f511}",
        "e\\n",
        "$(id)",
        "`id`",
        "{{7*7}}",
        &long,
        &longer,
        &longest,
    ] {
        let header = header_with_kid("ES256", kid);
        let shown: String = kid.chars().take(40).collect();
        let what = format!("kid {shown:?} of {} bytes", kid.len());
        forged.add(what, Hand::other().sign(header, claims("https://jwks.test", "")));
    }
    for kid in ["null", "7", "[\"e\"]", "{\"e\":1}", "true"] {
        let header = format!("{{\"alg\":\"ES256\",\"kid\":{kid}}}");
        forged
            .add(format!("kid {kid}"), Hand::p256().sign(header, claims("https://jwks.test", "")));
    }
    let mine = jwk("other-p256.pub.pem", "mine");
    for more in [
        "\"jku\":\"https://evil.test/keys\"".to_owned(),
        "\"jku\":\"https://jwks.test/keys@evil.test\"".to_owned(),
        "\"x5u\":\"https://evil.test/cert\"".to_owned(),
        format!("\"jwk\":{mine}"),
        format!("\"jwk\":{mine},\"kid\":\"mine\""),
        "\"x5c\":[\"MIIB\"]".to_owned(),
        "\"jku\":\"file:///dev/null\",\"kid\":\"e\"".to_owned(),
        "\"iss\":\"https://evil.test\",\"kid\":\"mine\"".to_owned(),
    ] {
        for issuer in ["https://hs.test", "https://pem.test", "https://jwks.test"] {
            let header = format!("{{\"alg\":\"ES256\",{more}}}");
            let what = format!("{} for {issuer}", &more[..more.len().min(60)]);
            forged.add(what, Hand::other().sign(header, claims(issuer, "")));
        }
    }
    for header in [
        r#"{"alg":"HS256","crit":[]}"#,
        r#"{"alg":"HS256","crit":["exp"],"exp":1}"#,
        r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
        r#"{"alg":"HS256","b64":false}"#,
        r#"{"alg":"HS256","crit":["http://example.invalid/x"],"http://example.invalid/x":true}"#,
        r#"{"alg":"HS256","crit":null}"#,
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS256","\u0061lg":"none"}"#,
        "[]",
        "null",
        "7",
        "",
        "{",
        r#""HS256""#,
        r#"{"alg":"HS256"}x"#,
        r#"{"alg":"HS256"}{"alg":"HS256"}"#,
        r#"{"alg":"HS256",}"#,
        r#"{'alg':'HS256'}"#,
        "\u{feff}{\"alg\":\"HS256\"}",
        r#"["HS256"]"#,
    ] {
        let token = hs256().sign(header, claims("https://hs.test", ""));
        forged.add(format!("header {header}"), token);
    }
    // What RFC 7797 does with b64: the payload as it is.
    let payload = claims("https://hs.test", "");
    let part = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#);
    let signed = format!("{part}.{payload}");
    let signature = crypto::sign(signed.as_bytes(), &hs256().0, hs256().1).unwrap();
    forged.add("unencoded payload", format!("{signed}.{signature}"));
}

/// Good tokens, handled badly.
fn shapes(forged: &mut Forged) {
    let good = good();
    for (i, token) in good.iter().enumerate() {
        let parts: Vec<&str> = token.split('.').collect();
        let &[header, payload, signature] = &*parts else { panic!("{token}") };
        let other = good[(i + 1) % good.len()].rsplit_once('.').unwrap().1;
        let flip = |part: &str| {
            let mut bytes = URL_SAFE_NO_PAD.decode(part).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            URL_SAFE_NO_PAD.encode(bytes)
        };
        let zeros = URL_SAFE_NO_PAD.encode(vec![0; signature.len() * 3 / 4]);
        let ones = URL_SAFE_NO_PAD.encode(vec![255; signature.len() * 3 / 4]);
        let half = &signature[..signature.len() / 2];
        let cut = &signature[..signature.len() - 1];
        let admin = URL_SAFE_NO_PAD.encode(claims("https://hs.test", ",\"roles\":[\"admin\"]"));
        let shapes = [
            format!("{header}.{payload}"),
            format!("{header}.{payload}."),
            format!("{header}..{signature}"),
            format!(".{payload}.{signature}"),
            header.to_owned(),
            format!("{payload}.{signature}"),
            format!("{header}.{payload}.{half}"),
            format!("{header}.{payload}.{cut}"),
            format!("{header}.{}.{signature}", &payload[1..]),
            format!("{header}.{}.{signature}", &payload[..4]),
            format!("{token}."),
            format!(".{token}"),
            format!("{token}.{signature}"),
            format!("{token}.."),
            format!("{token}={}", ""),
            format!("{token}=="),
            format!("{header}=.{payload}.{signature}"),
            format!("{header}.{payload}=.{signature}"),
            format!("{payload}.{header}.{signature}"),
            format!(" {token}"),
            format!("{token} "),
            format!("{token}\n"),
            format!("{token}\r\n\r\nX: y"),
            format!("{header}. {payload}.{signature}"),
            format!("{token}\0"),
            format!("\0{token}"),
            format!("{header}\0.{payload}.{signature}"),
            format!("{header}\u{ff0e}{payload}\u{ff0e}{signature}"),
            format!("{header}.{payload}.{signature}\u{200b}"),
            format!("Bearer {token}"),
            format!("\"{token}\""),
            format!("{header}.{payload}.{other}"),
            format!("{}.{payload}.{signature}", flip(header)),
            format!("{header}.{}.{signature}", flip(payload)),
            format!("{header}.{payload}.{}", flip(signature)),
            format!("{header}.{admin}.{signature}"),
            format!("{header}.{payload}.{zeros}"),
            format!("{header}.{payload}.{ones}"),
            format!("{header}.{payload}.{signature}{signature}"),
            format!("{header}.{payload}.{}", signature.to_lowercase()),
            token.replace('.', "%2E"),
            token.replace('.', ","),
            format!("{header}.{payload}.{}+/", cut),
            token.chars().rev().collect(),
            format!(
                "{{\"protected\":\"{header}\",\"payload\":\"{payload}\",\"signature\":\"{signature}\"}}"
            ),
            format!("{header}.{payload}.{}", URL_SAFE.encode(format!("{signature}x"))),
        ];
        for (j, shape) in shapes.into_iter().enumerate() {
            forged.add(format!("shape {j} of good token {i}"), shape);
        }
    }
}

/// Signatures and sizes that a good token does not have.
fn signatures_and_sizes(forged: &mut Forged) {
    // An ECDSA signature as ASN.1 has it, and one whose unused bits are set.
    let token = &good()[3];
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let number = |half: &[u8]| [&[2, 33, 0], half].concat();
    let (r, s) = bytes.split_at(32);
    let der = [&[0x30, 70][..], &number(r), &number(s)].concat();
    forged.add("signature in DER", format!("{signed}.{}", URL_SAFE_NO_PAD.encode(der)));
    let last = signature.chars().last().unwrap();
    let next = char::from_u32(u32::from(last) + 1).unwrap();
    let same = format!("{signed}.{}{next}", &signature[..signature.len() - 1]);
    forged.add("signature with bits that mean nothing", same);
    let huge = hs256().sign(
        header("HS256"),
        claims("https://hs.test", &format!(",\"x\":\"{}\"", "x".repeat(1 << 20))),
    );
    forged.add("a token of a megabyte", huge);
    let long = hs256().sign(
        header("HS256"),
        claims("https://hs.test", &format!(",\"x\":\"{}\"", "x".repeat(6100))),
    );
    assert!(long.len() > TOKEN_BYTES_MAX && long.len() < TOKEN_BYTES_MAX + 200, "{}", long.len());
    forged.add("a token that is a little too long", long);
    for text in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "e30.e30.",
        "e30.e30.e30",
        "\u{0}.\u{0}.\u{0}",
        "bnVsbA.bnVsbA.bnVsbA",
    ] {
        forged.add(format!("text {text:?}"), text);
    }
    forged.add("a megabyte of dots", ".".repeat(1 << 20));
    let nested = format!("{}1{}", "[".repeat(2900), "]".repeat(2900));
    forged.add("nested header", hs256().sign(&nested, claims("https://hs.test", "")));
    forged.add("nested payload", hs256().sign(header("HS256"), &nested));
    let objects = "{\"a\":".repeat(1100);
    forged.add("nested objects", hs256().sign(header("HS256"), objects));
}

/// Good claims with another value of one of them, or without it.
fn changed(name: &str, value: Option<&str>) -> String {
    let exp = (NOW + 60).to_string();
    let good =
        [("iss", "\"https://hs.test\""), ("aud", "\"me\""), ("sub", "\"hush\""), ("exp", &*exp)];
    let kept = good.iter().filter(|(claim, _)| *claim != name);
    let kept = kept.map(|(claim, value)| format!("\"{claim}\":{value}"));
    let changed = value.map(|value| format!("\"{name}\":{value}"));
    format!("{{{}}}", kept.chain(changed).collect::<Vec<_>>().join(","))
}

/// Times that are wrong.
fn wrong_times() -> Vec<String> {
    let past = [NOW - 10, NOW - 11, NOW - 3600, 0].map(|t| t.to_string());
    let future = [NOW + 11, NOW + 3600, 1 << 53].map(|t| t.to_string());
    let text = format!("\"{}\"", NOW + 60);
    let numbers = [
        "null",
        "true",
        "[]",
        "{}",
        "-1",
        "-0.5",
        "1e400",
        "1e308",
        "-1e308",
        "9007199254740993",
        "9007199254740994.0",
        "18446744073709551615",
        "18446744073709551616",
        "\"\"",
        "\"now\"",
        "NaN",
        "Infinity",
        "0x7fffffff",
        "+5",
        ".5",
        "1.",
        "01",
        "[1800000060]",
    ];
    let mut all: Vec<String> = Vec::new();
    let mut with = |name: &str, values: &[&str]| {
        all.extend(values.iter().map(|value| changed(name, Some(value))));
    };
    with("exp", &numbers);
    with("nbf", &numbers);
    with("iat", &numbers);
    with("exp", &[&text, &past[0], &past[1], &past[2], &past[3]]);
    with("nbf", &[&text, &future[0], &future[1], &future[2]]);
    with("iat", &[&text, &future[0], &future[1], &future[2]]);
    all
}

/// Values of other claims that are wrong.
fn wrong_values() -> Vec<String> {
    let names = format!("[{}]", vec!["\"a\""; 129].join(","));
    let many = format!("{{\"allow\":{{\"publish\":[{}]}}}}", vec!["\"*\""; 257].join(","));
    let long = format!("\"{}\"", "x".repeat(256));
    let pattern = format!("{{\"allow\":{{\"publish\":[\"{}\"]}}}}", "*a".repeat(300));
    let nested = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let mut all: Vec<String> = Vec::new();
    let mut with = |name: &str, values: &[&str]| {
        all.extend(values.iter().map(|value| changed(name, Some(value))));
    };
    with(
        "aud",
        &[
            "null",
            "7",
            "[]",
            "\"\"",
            "\"you\"",
            "\"ME\"",
            "\"me \"",
            "\"mee\"",
            "[\"you\"]",
            "{\"me\":1}",
            "[[\"me\"]]",
            "[7,\"me\"]",
            "\"*\"",
            "\"me,you\"",
            "[null]",
            "\"me\\u0000\"",
            "true",
        ],
    );
    with(
        "sub",
        &[
            "null",
            "\"\"",
            "[]",
            "{}",
            "true",
            "-1",
            "1.5",
            "\"a\\nb\"",
            "[\"a\"]",
            "\"\\ud800\"",
            &long,
        ],
    );
    with("jti", &["7", "null", "[]", &long]);
    with("roles", &["7", "null", "{}", "[7]", "[null]", "[[\"admin\"]]", "true"]);
    with("channels", &["\"a\"", "null", "{}", "[7]", "[\"a b\"]", "[\"*\"]", "[\"\"]", &names]);
    with("info", &["\"\\ud800\"", "1e999", &nested]);
    with("channel", &["\"a\"", "null", "[]"]);
    with(
        "permissions",
        &[
            "7",
            "null",
            "[]",
            "{\"alow\":{}}",
            "{\"allow\":[]}",
            "{\"allow\":{\"write\":[\"a\"]}}",
            "{\"allow\":{\"publish\":\"a\"}}",
            "{\"allow\":{\"publish\":[\"\"]}}",
            "{\"deny\":{\"publish\":[\"a b\"]}}",
            "{\"allow\":{},\"allow\":{}}",
            "{\"allow\":{\"publish\":[],\"publish\":[\"*\"]}}",
            "{\"deny\":null}",
            "{\"allow\":{\"Publish\":[\"a\"]}}",
            "{\"deny\":{\"publish\":[7]}}",
            &many,
            &pattern,
        ],
    );
    all
}

/// Claims that are signed as they should be, and wrong.
fn wrong_claims() -> Vec<String> {
    let mut all = [wrong_times(), wrong_values()].concat();
    all.extend(["aud", "sub", "exp"].map(|name| changed(name, None)));
    let good = claims("https://hs.test", "");
    for twice in [
        "\"sub\":\"root\"",
        "\"exp\":1900000000",
        "\"aud\":\"me\"",
        "\"iss\":\"https://hs.test\"",
        "\"\\u0073ub\":\"root\"",
        "\"x\":1,\"x\":1",
    ] {
        all.push(good.replace('}', &format!(",{twice}}}")));
    }
    all.extend(["", "{}", "[]", "null", "7", "\"x\"", "{"].map(str::to_owned));
    all.extend([format!("{good}x"), format!("{good}{good}"), format!("\u{feff}{good}")]);
    all.extend([good.replace('"', "'"), good.replace('}', ",}"), format!("/**/{good}")]);
    all.extend([format!("[{good}]"), format!("{good}\0")]);
    all
}

fn everything() -> Forged {
    let mut forged = Forged::default();
    unsigned(&mut forged);
    public_keys_as_secrets(&mut forged);
    keys_of_another_kind(&mut forged);
    headers(&mut forged);
    shapes(&mut forged);
    signatures_and_sizes(&mut forged);
    for payload in wrong_claims() {
        let what = payload.chars().take(150).collect::<String>();
        forged.add(format!("claims {what}"), hs256().sign(header("HS256"), payload));
    }
    for iss in [
        "null",
        "7",
        "[\"https://hs.test\"]",
        "{\"https://hs.test\":1}",
        "true",
        "\"https://HS.test\"",
        "\"hs.test\"",
        "\"https://hs.test/\"",
        "\"https://hs.test \"",
        "\"https://hs.test\\u0000\"",
        "\"https://pem.test\"",
        "\"https://hs512.test\"",
        "\"https://jwks.test\"",
        "\"*\"",
        "\"\"",
    ] {
        let payload = claims("https://hs.test", "").replace("\"https://hs.test\"", iss);
        forged.add(format!("iss {iss}"), hs256().sign(header("HS256"), payload));
    }
    let bytes = [
        &b"{\"iss\":\"https://hs.test\",\"aud\":\"me\",\"sub\":\"\xff\",\"exp\":"[..],
        b"1800000060}",
    ]
    .concat();
    forged.add("not UTF-8", hs256().sign(header("HS256"), bytes));
    forged
}

#[test]
fn no_forged_or_broken_token_is_taken() {
    let (issuers, remote) = (issuers(), remote());
    let Forged(forged) = everything();
    let different: BTreeSet<&String> = forged.iter().map(|(_, token)| token).collect();
    assert!(different.len() >= 600, "{} tokens", different.len());
    println!("{} forged or broken tokens", different.len());
    for (what, token) in &forged {
        let error = match issuers.check(token, NOW, &remote) {
            Ok(checked) => panic!("{what} was taken: {checked:?}"),
            Err(error) => error,
        };
        let told = error.to_string();
        assert!(!told.contains("hush") && !told.chars().any(char::is_control), "{what}: {told}");
        if let TokenError::UnknownKey { url, .. } = &error {
            assert_eq!(&**url, URL, "{what}: keys are asked for where the configuration says");
        }
    }
}

#[test]
fn claims_that_are_wrong_are_refused_for_what_is_wrong_with_them() {
    let issuers = issuers();
    for payload in wrong_claims() {
        let token = hs256().sign(header("HS256"), &payload);
        let error = issuers.check(&token, NOW, &RemoteKeys::default()).unwrap_err();
        let shape = matches!(error, TokenError::Malformed(_));
        // Without an issuer it is the one without a name whose signature it has not.
        let unnamed = error == TokenError::BadSignature && !payload.contains("iss");
        let judged = !matches!(error, TokenError::BadSignature | TokenError::UnknownIssuer);
        assert!(shape || judged || unnamed, "{error}: {payload}");
    }
}

#[test]
fn no_forged_token_opens_a_channel() {
    let (issuers, remote) = (issuers(), remote());
    let (user, channel) = (UserId::new("hush").unwrap(), ChannelName::new("a").unwrap());
    let open = |token: &str| {
        issuers.check_channel_token(token, NOW, &remote, Some(&user), &channel).is_ok()
    };
    let good = hs256().sign(header("HS256"), claims("https://hs.test", ",\"channel\":\"a\""));
    assert!(open(&good));
    for (what, token) in everything().0 {
        // Signed as it should be, for this user and this channel.
        let is_good = token == good;
        assert!(!open(&token) || is_good, "{what}");
    }
}
