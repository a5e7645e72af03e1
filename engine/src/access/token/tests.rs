//! Tokens that are good, and what makes them so; `forged.rs` has those that are not.

mod forged;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use ringfeed_protocol::Operation;

use super::*;
use crate::config::Sources;

const NOW: u64 = 1_800_000_000;
const SECRET: &str = "a secret of thirty-two bytes, hush";
const OTHER_SECRET: &str = "another secret, for HS512, also hush hush";
const NAMELESS_SECRET: &str = "the secret of whoever has no name, hush";
const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys");
const URL: &str = "https://jwks.test/keys";
const EVIL_URL: &str = "https://evil.test/keys";

fn pem(name: &str) -> Vec<u8> {
    std::fs::read(format!("{KEYS}/{name}")).unwrap()
}

fn load(file: &str, environment: &[(&str, &str)]) -> Result<Issuers, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, file).unwrap();
    let environment = environment.iter().map(|&(k, v)| (k.into(), v.into())).collect();
    let sources = Sources { file: Some(&path), environment, ..Sources::default() };
    let config = Config::load(&sources).map_err(|e| e.to_string())?;
    Issuers::from_config(&config).map_err(|e| e.to_string())
}

/// One issuer of each kind, one whose keys are an attacker's, and one without a name.
fn issuers() -> Issuers {
    let file = format!(
        "[[issuers]]\nissuer = \"https://hs.test\"\naudience = [\"me\", \"us\"]\nsecret = \"{SECRET}\"\n\
         claims = [\"tier\", \"level\"]\n\
         [[issuers]]\nissuer = \"https://hs512.test\"\naudience = [\"me\"]\nsecret = \"{OTHER_SECRET}\"\n\
         secret_algorithm = \"HS512\"\n\
         [[issuers]]\nissuer = \"https://pem.test\"\naudience = [\"me\"]\n\
         public_key_files = [\"{KEYS}/rsa.pub.pem\", \"{KEYS}/p256.pub.pem\", \"{KEYS}/ed25519.pub.pem\"]\n\
         [[issuers]]\nissuer = \"https://jwks.test\"\naudience = [\"me\"]\njwks_url = \"{URL}\"\n\
         [[issuers]]\nissuer = \"https://evil.test\"\naudience = [\"me\"]\njwks_url = \"{EVIL_URL}\"\n\
         [[issuers]]\nsecret = \"{NAMELESS_SECRET}\"\n"
    );
    load(&file, &[]).unwrap()
}

fn jwk(name: &str, kid: &str) -> String {
    let key = Key::from_pem(&pem(name)).unwrap();
    let jwk = jsonwebtoken::jwk::Jwk::from_decoding_key(key.decoding(), None).unwrap();
    let mut jwk = serde_json::to_value(jwk).unwrap();
    jwk["kid"] = kid.into();
    jwk.to_string()
}

fn jwks(keys: &[(&str, &str)]) -> Vec<u8> {
    let keys: Vec<String> = keys.iter().map(|(name, kid)| jwk(name, kid)).collect();
    format!("{{\"keys\":[{}]}}", keys.join(",")).into_bytes()
}

const ALL: [KeyAlgorithm; 3] = [KeyAlgorithm::RS256, KeyAlgorithm::ES256, KeyAlgorithm::EdDSA];

fn remote() -> RemoteKeys {
    let mut remote = RemoteKeys::default();
    let ours = jwks(&[("rsa.pub.pem", "r"), ("p256.pub.pem", "e"), ("ed25519.pub.pem", "o")]);
    let evil = jwks(&[("other-p256.pub.pem", "e"), ("other-p256.pub.pem", "mine")]);
    remote.replace(URL, RemoteKeys::parse_jwks(&ours, &ALL).unwrap());
    remote.replace(EVIL_URL, RemoteKeys::parse_jwks(&evil, &ALL).unwrap());
    remote
}

/// What signs, as an attacker may, too: any key with any header.
#[derive(Clone)]
struct Hand(EncodingKey, Algorithm);

impl Hand {
    fn secret(secret: impl AsRef<[u8]>, algorithm: Algorithm) -> Hand {
        Hand(EncodingKey::from_secret(secret.as_ref()), algorithm)
    }

    fn rsa() -> Hand {
        Hand(EncodingKey::from_rsa_pem(&pem("rsa.pem")).unwrap(), Algorithm::RS256)
    }

    fn p256() -> Hand {
        Hand(EncodingKey::from_ec_pem(&pem("p256.pem")).unwrap(), Algorithm::ES256)
    }

    fn ed25519() -> Hand {
        Hand(EncodingKey::from_ed_pem(&pem("ed25519.pem")).unwrap(), Algorithm::EdDSA)
    }

    /// Nobody's but the attacker's.
    fn other() -> Hand {
        Hand(EncodingKey::from_ec_pem(&pem("other-p256.pem")).unwrap(), Algorithm::ES256)
    }

    fn sign(&self, header: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> String {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let signed = format!("{}.{}", part(header.as_ref()), part(payload.as_ref()));
        format!("{signed}.{}", crypto::sign(signed.as_bytes(), &self.0, self.1).unwrap())
    }
}

fn header(algorithm: &str) -> String {
    format!("{{\"alg\":\"{algorithm}\",\"typ\":\"JWT\"}}")
}

fn header_with_kid(algorithm: &str, kid: &str) -> String {
    format!("{{\"alg\":\"{algorithm}\",\"kid\":\"{kid}\"}}")
}

fn claims(issuer: &str, more: &str) -> String {
    let exp = NOW + 60;
    format!("{{\"iss\":\"{issuer}\",\"aud\":\"me\",\"sub\":\"hush\",\"exp\":{exp}{more}}}")
}

/// A good token of each algorithm, by each way a key can be known.
fn good() -> Vec<String> {
    let pem = claims("https://pem.test", "");
    let jwks = claims("https://jwks.test", "");
    vec![
        Hand::secret(SECRET, Algorithm::HS256).sign(header("HS256"), claims("https://hs.test", "")),
        Hand::secret(OTHER_SECRET, Algorithm::HS512)
            .sign(header("HS512"), claims("https://hs512.test", "")),
        Hand::rsa().sign(header("RS256"), &pem),
        Hand::p256().sign(header("ES256"), &pem),
        Hand::ed25519().sign(header("EdDSA"), &pem),
        Hand::rsa().sign(header_with_kid("RS256", "r"), &jwks),
        Hand::p256().sign(header_with_kid("ES256", "e"), &jwks),
        Hand::ed25519().sign(header_with_kid("EdDSA", "o"), &jwks),
    ]
}

/// What comes of claims that are signed as they should be, `more` behind the good ones.
fn signed(more: &str) -> Result<Checked, TokenError> {
    let token = Hand::secret(SECRET, Algorithm::HS256)
        .sign(header("HS256"), claims("https://hs.test", more));
    issuers().check(&token, NOW, &RemoteKeys::default())
}

#[test]
fn good_tokens_of_every_algorithm_are_taken() {
    let (issuers, remote) = (issuers(), remote());
    for token in good() {
        let checked = issuers.check(&token, NOW, &remote).unwrap();
        assert_eq!(checked.admitted.identity.user.as_deref(), Some("hush"));
        assert_eq!(checked.admitted.identity.expires_at, Some(NOW + 60));
        assert_eq!(checked.leeway_s, 10);
    }
    let hs384 = format!("[[issuers]]\nsecret = \"{SECRET}\"\nsecret_algorithm = \"HS384\"\n");
    let payload = format!("{{\"sub\":\"a\",\"exp\":{}}}", NOW + 1);
    let token = Hand::secret(SECRET, Algorithm::HS384).sign(header("HS384"), payload);
    load(&hs384, &[]).unwrap().check(&token, NOW, &remote).unwrap();
}

#[test]
fn whoever_has_no_name_takes_the_tokens_that_are_nobody_elses() {
    let hand = Hand::secret(NAMELESS_SECRET, Algorithm::HS256);
    for (iss, taken) in
        [("", true), ("\"iss\":\"else\",", true), ("\"iss\":\"https://hs.test\",", false)]
    {
        let payload = format!("{{{iss}\"sub\":\"a\",\"exp\":{}}}", NOW + 1);
        let checked = issuers().check(&hand.sign(header("HS256"), payload), NOW, &remote());
        assert_eq!(checked.is_ok(), taken, "{iss}: {checked:?}");
    }
}

#[test]
fn claims_say_who_the_bearer_is() {
    let more = r#","jti":"t1","iat":1799999999.5,"roles":["editor","ops"],"tier":"gold","level":[1,true,"x",null,{"a":1}],
        "other":"no","info":{"name":"Ann"},"channels":["news","box.ann"],
        "permissions":{"allow":{"subscribe":["a.*"],"publish":["b","c"]},"deny":{"history":["*"]}}"#;
    let Admitted { identity, channels, stated } = signed(more).unwrap().admitted;
    assert_eq!(stated, None);
    let expected = [
        "role:editor",
        "role:ops",
        "claim:tier=gold",
        "claim:level=1",
        "claim:level=true",
        "claim:level=x",
    ];
    assert_eq!(*identity.attributes, expected);
    assert_eq!((identity.token.as_deref(), identity.issued_at), (Some("t1"), NOW - 1));
    assert_eq!(identity.info.as_deref(), Some(r#"{"name":"Ann"}"#));
    assert_eq!(channels.iter().map(|c| c.as_str()).collect::<Vec<_>>(), ["news", "box.ann"]);
    let grants = identity.grants.unwrap();
    let allowed: Vec<_> = grants.allow.iter().map(|g| (g.operation, &*g.pattern)).collect();
    let publish = Operation::Publish;
    assert_eq!(allowed, [(Operation::Subscribe, "a.*"), (publish, "b"), (publish, "c")]);
    assert_eq!((grants.deny[0].operation, &*grants.deny[0].pattern), (Operation::History, "*"));
    let plain = signed("").unwrap().admitted;
    assert_eq!(
        (plain.identity.issued_at, plain.identity.grants, plain.channels.len()),
        (0, None, 0)
    );
}

#[test]
fn times_count_with_the_leeway_of_the_issuer() {
    let hand = Hand::secret(SECRET, Algorithm::HS256);
    let token = |exp: String, more: &str| {
        let payload = format!(
            "{{\"iss\":\"https://hs.test\",\"aud\":[\"you\",\"us\"],\"sub\":7,\"exp\":{exp}{more}}}"
        );
        issuers().check(&hand.sign(header("HS256"), payload), NOW, &RemoteKeys::default())
    };
    assert_eq!(
        token((NOW - 9).to_string(), "").unwrap().admitted.identity.user.as_deref(),
        Some("7")
    );
    assert_eq!(token((NOW - 10).to_string(), ""), Err(TokenError::Expired));
    assert_eq!(
        token(format!("{}.75", NOW - 9), "").unwrap().admitted.identity.expires_at,
        Some(NOW - 9)
    );
    let later =
        |claim: &str, s: u64| token((NOW + 60).to_string(), &format!(",\"{claim}\":{}", NOW + s));
    for claim in ["nbf", "iat"] {
        later(claim, 10).unwrap();
        assert_eq!(later(claim, 11), Err(TokenError::NotYet));
    }
    let limited =
        load(&format!("[[issuers]]\nsecret = \"{SECRET}\"\nlifetime_s_max = 60\n"), &[]).unwrap();
    let lives = |claims: String| {
        let token = hand.sign(header("HS256"), format!("{{\"sub\":\"a\",{claims}}}"));
        limited.check(&token, NOW, &RemoteKeys::default()).map(|_| ())
    };
    assert_eq!(lives(format!("\"iat\":{NOW},\"exp\":{}", NOW + 60)), Ok(()));
    assert_eq!(lives(format!("\"iat\":{NOW},\"exp\":{}", NOW + 61)), Err(TokenError::LivesTooLong));
    assert_eq!(lives(format!("\"exp\":{}", NOW + 1)), Err(TokenError::MissingClaim("iat".into())));
}

#[test]
fn a_token_for_a_channel_opens_that_channel_to_that_user_and_nothing_else() {
    let hand = Hand::secret(SECRET, Algorithm::HS256);
    let (issuers, remote) = (issuers(), RemoteKeys::default());
    let (ann, bob) = (UserId::new("ann").unwrap(), UserId::new("bob").unwrap());
    let token = |claims: &str| {
        let payload = format!("{{\"iss\":\"https://hs.test\",\"aud\":\"me\"{claims}}}");
        hand.sign(header("HS256"), payload)
    };
    let check = |claims: &str, user: Option<&UserId>, channel: &str| {
        let channel = ChannelName::new(channel).unwrap();
        issuers.check_channel_token(&token(claims), NOW, &remote, user, &channel)
    };
    let exp = format!(",\"exp\":{}", NOW + 5);
    let good = Ok(ChannelToken { expires_at: NOW + 5 + 10, id: None, issued_at: 0 });
    let of_ann = format!("{exp},\"sub\":\"ann\",\"channel\":\"vip\"");
    let of_nobody = format!("{exp},\"channel\":\"vip\"");
    assert_eq!(check(&of_ann, Some(&ann), "vip"), good);
    assert_eq!(check(&of_nobody, None, "vip"), good);
    let named = format!("{of_ann},\"jti\":\"t\",\"iat\":{NOW}");
    let shown = check(&named, Some(&ann), "vip").unwrap();
    assert_eq!((shown.id.as_deref(), shown.issued_at), (Some("t"), NOW));
    let bad = |claim: &str| Err(TokenError::bad(claim));
    assert_eq!(check(&of_ann, Some(&bob), "vip"), bad("sub"));
    assert_eq!(check(&of_ann, None, "vip"), bad("sub"));
    assert_eq!(check(&of_nobody, Some(&ann), "vip"), bad("sub"));
    assert_eq!(check(&of_ann, Some(&ann), "vip2"), bad("channel"));
    let star = format!("{exp},\"sub\":\"ann\",\"channel\":\"*\"");
    assert_eq!(check(&star, Some(&ann), "vip"), bad("channel"));
    let list = format!("{exp},\"sub\":\"ann\",\"channel\":[\"vip\"]");
    assert_eq!(check(&list, Some(&ann), "vip"), bad("channel"));
    let none = format!("{exp},\"sub\":\"ann\"");
    assert_eq!(check(&none, Some(&ann), "vip"), Err(TokenError::missing("channel")));
    let endless = ",\"sub\":\"ann\",\"channel\":\"vip\"";
    assert_eq!(check(endless, Some(&ann), "vip"), Err(TokenError::missing("exp")));
    assert_eq!(issuers.check(&token(&of_ann), NOW, &remote), Err(TokenError::bad("channel")));
}

#[test]
fn a_key_that_is_not_known_is_named_and_a_key_of_another_address_is_another_key() {
    let issuers = issuers();
    let token = Hand::p256().sign(header_with_kid("ES256", "e"), claims("https://jwks.test", ""));
    let unknown = TokenError::UnknownKey { url: URL.into(), kid: "e".into() };
    assert_eq!(issuers.check(&token, NOW, &RemoteKeys::default()), Err(unknown));
    let mut elsewhere = RemoteKeys::default();
    let document = jwks(&[("p256.pub.pem", "e")]);
    elsewhere.replace(EVIL_URL, RemoteKeys::parse_jwks(&document, &ALL).unwrap());
    assert!(matches!(issuers.check(&token, NOW, &elsewhere), Err(TokenError::UnknownKey { .. })));
    let evil = Hand::other().sign(header_with_kid("ES256", "e"), claims("https://evil.test", ""));
    issuers.check(&evil, NOW, &remote()).unwrap();
    let forged = Hand::other().sign(header_with_kid("ES256", "e"), claims("https://jwks.test", ""));
    assert_eq!(issuers.check(&forged, NOW, &remote()), Err(TokenError::BadSignature));
    let sources = issuers.key_sources();
    assert_eq!(sources.iter().map(|s| &*s.url).collect::<Vec<_>>(), [URL, EVIL_URL]);
}

#[test]
fn published_keys_that_do_not_fit_are_left_out() {
    let good = jwk("p256.pub.pem", "k");
    let parse = |keys: &str, allowed: &[KeyAlgorithm]| {
        let found = RemoteKeys::parse_jwks(format!("{{\"keys\":[{keys}]}}").as_bytes(), allowed);
        found.unwrap().keys.len()
    };
    assert_eq!(parse(&good, &ALL), 1);
    assert_eq!(parse(&good, &[KeyAlgorithm::RS256]), 0);
    assert_eq!(parse(&format!("{good},{good}"), &ALL), 1, "one id, one key");
    let with = |more: &str| good.replacen('{', &format!("{{{more},"), 1);
    for fits in [r#""use":"sig""#, r#""alg":"ES256""#, r#""key_ops":["verify"]"#, r#""x5t":"a""#] {
        assert_eq!(parse(&with(fits), &ALL), 1, "{fits}");
    }
    for bad in [
        r#""use":"enc""#,
        r#""alg":"RS256""#,
        r#""alg":"none""#,
        r#""alg":"HS256""#,
        r#""key_ops":["sign"]"#,
        r#""d":"AAAA""#,
        r#""kid":"again""#,
        r#""alg":7"#,
    ] {
        assert_eq!(parse(&with(bad), &ALL), 0, "{bad}");
    }
    let rsa = jwk("rsa.pub.pem", "k");
    for bad in [
        r#"{"kty":"oct","kid":"k","k":"AAAA"}"#,
        r#"{"kty":"oct","kid":"k","alg":"HS256","k":"AAAA"}"#,
        r#"{"kty":"RSA","kid":"k","n":"AQAB","e":"AQAB"}"#,
        r#"{"kty":"EC","kid":"k","crv":"P-256","x":"AAAA","y":"AAAA"}"#,
        r#"{"kty":"OKP","kid":"k","crv":"X25519","x":"2nc9ianXkQTT_xiwGe6y6jeCiwEnTStaUlSsCmnZnOQ"}"#,
        "{}",
        "7",
        "null",
        "[]",
        "\"k\"",
        &rsa.replace("\"e\":\"AQAB\"", "\"e\":\"AQ\""),
        &rsa.replace("\"e\":\"AQAB\"", "\"e\":\"AQAA\""),
        &good.replace("P-256", "P-384"),
        &good.replace("P-256", "secp256k1"),
        &good.replace("\"kid\":\"k\"", "\"kid\":\"\""),
        &good.replace("\"kid\":\"k\"", "\"kid\":7"),
        &good.replace("\"kid\":\"k\",", ""),
    ] {
        assert_eq!(parse(bad, &ALL), 0, "{bad}");
    }
    for bad in [&b""[..], b"[]", b"{}", b"{\"keys\":{}}", b"\xff", b"{\"keys\":[]", b"<html>"] {
        assert!(RemoteKeys::parse_jwks(bad, &ALL).is_err());
    }
    let long = format!("{{\"keys\":[{}]}}", " ".repeat(JWKS_BYTES_MAX));
    assert!(RemoteKeys::parse_jwks(long.as_bytes(), &ALL).is_err());
}

#[test]
fn keys_of_other_kinds_are_refused_when_they_are_read() {
    for (file, why) in [
        ("rsa1024.pub.pem", "has 1024 bits; allowed are 2048 to 8192"),
        ("p384.pub.pem", "allowed are public keys of RSA, P-256 and Ed25519"),
        ("secp256k1.pub.pem", "allowed are public keys of"),
        ("ed448.pub.pem", "allowed are public keys of"),
        ("rsa-pss.pub.pem", "allowed are public keys of"),
        ("p256.pem", "it holds a private key"),
        ("rsa.pem", "it holds a private key"),
        ("../../Cargo.toml", "it is no PEM file"),
        ("none.pem", "No such file"),
    ] {
        let error = load(&format!("[[issuers]]\npublic_key_files = [\"{KEYS}/{file}\"]\n"), &[]);
        let error = error.unwrap_err();
        assert!(error.contains("issuers[0].public_key_files: ") && error.contains(file), "{error}");
        assert!(error.contains(why), "{file}: {error}");
    }
    for (file, algorithm) in [
        ("rsa.pub.pem", "RS256"),
        ("rsa.pkcs1.pub.pem", "RS256"),
        ("p256.pub.pem", "ES256"),
        ("ed25519.pub.pem", "EdDSA"),
    ] {
        assert_eq!(Key::from_pem(&pem(file)).unwrap().algorithm_name(), algorithm);
    }
}

#[test]
fn secrets_come_from_three_places_and_are_told_to_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    let from_file = format!("[[issuers]]\nsecret_file = \"{}\"\n", file.display());
    let payload = format!("{{\"sub\":\"a\",\"exp\":{}}}", NOW + 1);
    let token = Hand::secret(SECRET, Algorithm::HS256).sign(header("HS256"), payload);
    for content in [SECRET.to_owned(), format!("{SECRET}\n"), format!("{SECRET}\r\n")] {
        std::fs::write(&file, content).unwrap();
        load(&from_file, &[]).unwrap().check(&token, NOW, &RemoteKeys::default()).unwrap();
    }
    let from_variable = "[[issuers]]\nsecret_env = \"TOKENS\"\n";
    let issuers = load(from_variable, &[("TOKEN", "x"), ("TOKENS", SECRET)]).unwrap();
    issuers.check(&token, NOW, &RemoteKeys::default()).unwrap();
    assert!(!format!("{issuers:?}{:?}", issuers.signer(0)).contains("hush"));
    for bytes in [&SECRET.as_bytes()[..4], b"115, 101"] {
        let numbers = format!("{bytes:?}");
        let numbers = numbers.trim_matches(['[', ']']);
        assert!(!format!("{issuers:?}").contains(numbers));
    }
    for (file, environment, part) in [
        (from_variable, &[][..], "issuers[0].secret_env: the environment has no such"),
        (from_variable, &[("TOKENS", "")], "issuers[0].secret_env: it is empty"),
        ("[[issuers]]\nsecret_file = \"/does/not/exist\"\n", &[], "/does/not/exist: No such file"),
        ("[[issuers]]\nsecret_file = \"/dev/zero\"\n", &[], "it is not a file"),
        (
            "[server]\nlisten = \"0.0.0.0:1\"\n[auth]\nanonymous = true\n[[issuers]]\nsecret = \"hush\"\n",
            &[],
            "issuers[0].secret: beyond loopback (server.listen) a secret must have at least 32 bytes",
        ),
    ] {
        let error = load(file, environment).unwrap_err();
        assert!(error.contains(part) && !error.contains("hush"), "{error}");
    }
    std::fs::write(&file, "\n").unwrap();
    assert!(load(&from_file, &[]).unwrap_err().contains("it is empty"));
    load("[[issuers]]\nsecret = \"hush\"\n", &[]).unwrap();
}

#[test]
fn what_signers_make_is_taken() {
    let (issuers, remote) = (issuers(), remote());
    let token = issuers.signer(0).unwrap().sign(None, &claims("https://hs.test", "")).unwrap();
    issuers.check(&token, NOW, &remote).unwrap();
    assert!(issuers.signer(2).is_none() && issuers.signer(9).is_none());
    for (file, kid) in [("rsa.pem", "r"), ("p256.pem", "e"), ("ed25519.pem", "o")] {
        let signer = Signer::from_pem(&pem(file)).unwrap();
        let token = signer.sign(None, &claims("https://pem.test", "")).unwrap();
        issuers.check(&token, NOW, &remote).unwrap();
        let token = signer.sign(Some(kid), &claims("https://jwks.test", "")).unwrap();
        issuers.check(&token, NOW, &remote).unwrap();
    }
    for file in ["p256.pub.pem", "rsa.pub.pem", "p384.pub.pem"] {
        assert!(Signer::from_pem(&pem(file)).is_err(), "{file}");
    }
}
