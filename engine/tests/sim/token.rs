//! Tokens that clients show in band: real ones, signed with what the configuration names, and such as must not be
//! taken. What each says is noted as a [`Found`], as of who comes through the door.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use ringfeed_engine::access::token::{Issuers, RemoteKeys, Signer};
use ringfeed_engine::config::{Config, Issuer, KeyAlgorithm, Secret, SecretAlgorithm};

use super::client::{Client, Scene};
use super::control::name_of_op;
use super::dice::Dice;
use super::ledger::{BAD, Found};
use super::link::{Intent, Link, Pending, Want};
use super::policy::{Line, Person, line};
use super::setup::Setup;

/// Where the second issuer publishes its keys.
const KEYS_URL: &str = "https://keys.example/";
/// Its public key (RFC 8037), of the private one in `tests/keys/ed25519.pem`.
const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k1","x":"2nc9iaeRBNO_8YsBnusuqjeCiwEnTSs6UlSsCmnZnOQ"}]}"#;
/// Tokens count so much longer than they say.
pub(crate) const LEEWAY_S: u64 = 1;

/// What makes tokens.
pub(crate) struct Mint {
    secret: Signer,
    /// Of somebody who does not know the secret.
    forger: Signer,
    published: Signer,
    /// The second issuer's keys were fetched.
    pub(crate) keys_known: bool,
    /// Numbers of tokens so far.
    pub(crate) count: usize,
    unix_ms: Rc<Cell<u64>>,
}

/// What is wrong with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Good,
    Expired,
    Forged,
    OtherIssuer,
    ForChannel,
    OtherUser,
    /// There is none.
    Missing,
}

/// Who signs tokens, as a configuration has it.
pub(super) fn apply(config: &mut Config) {
    let issuer = |name: &str| Issuer {
        issuer: name.into(),
        audience: Vec::new(),
        secret: Secret(Vec::new()),
        secret_env: Secret(Vec::new()),
        secret_file: String::new(),
        secret_algorithm: SecretAlgorithm::HS256,
        public_key_files: Vec::new(),
        jwks_url: String::new(),
        jwks_algorithms: Vec::new(),
        leeway_s: LEEWAY_S as u32,
        user_claim: "sub".into(),
        roles_claim: "roles".into(),
        claims: vec!["conn".into()],
        lifetime_s_max: 0,
    };
    let secret = Issuer { secret: Secret("what nobody else knows".into()), ..issuer("app") };
    let published = Issuer {
        jwks_url: KEYS_URL.into(),
        jwks_algorithms: vec![KeyAlgorithm::EdDSA],
        ..issuer("keys")
    };
    config.issuers = vec![secret, published];
}

/// What is fetched from the second issuer.
pub(super) fn published_keys() -> RemoteKeys {
    let mut keys = RemoteKeys::default();
    let jwks = RemoteKeys::parse_jwks(KEYS.as_bytes(), &[KeyAlgorithm::EdDSA]);
    keys.replace(KEYS_URL, jwks.expect("a JWK Set"));
    keys
}

impl Mint {
    pub(super) fn new(mut config: Config, unix_ms: Rc<Cell<u64>>) -> Mint {
        apply(&mut config);
        let signer = |config: &Config| {
            let issuers = Issuers::from_config(config).expect("the issuers are valid");
            issuers.signer(0).expect("it has a secret")
        };
        let secret = signer(&config);
        config.issuers[0].secret = Secret("what somebody has guessed".into());
        let forger = signer(&config);
        let published = Signer::from_pem(include_bytes!("../keys/ed25519.pem"));
        let published = published.expect("a private key");
        Mint { secret, forger, published, keys_known: false, count: 0, unix_ms }
    }

    /// A token of this or an earlier number.
    pub(crate) fn number(&mut self, dice: &mut Dice) -> usize {
        if self.count == 0 || dice.chance(700) {
            self.count += 1;
        }
        self.count
    }

    /// Signs what was found of somebody; `expires_s` is when it counts no more.
    fn sign(
        &self,
        found: &Found,
        conn: usize,
        fault: Fault,
        by_keys: bool,
        setup: &Setup,
    ) -> String {
        let Found { person, token, issued_s, expires_s, channels, .. } = found;
        let list = |texts: Vec<String>| serde_json::to_string(&texts).expect("texts are JSON");
        let mut roles: Vec<String> = person.roles.iter().map(|role| format!("r{role}")).collect();
        roles.extend(person.sends.then(|| "sender".to_owned()));
        let names = channels.iter().map(|&channel| setup.channels[channel].name.clone()).collect();
        let grants = |allow: bool| {
            // Each operation once: what stands there twice is not taken.
            let mut patterns = BTreeMap::<&str, Vec<String>>::new();
            for Line { op, group, .. } in person.grants.iter().filter(|line| line.allow == allow) {
                patterns.entry(name_of_op(*op)).or_default().push(format!("g{group}.*"));
            }
            serde_json::to_string(&patterns).expect("texts are JSON")
        };
        let issuer = match fault {
            Fault::OtherIssuer => "nobody",
            _ if by_keys => "keys",
            _ => "app",
        };
        let mut claims = format!(
            "{{\"iss\":\"{issuer}\",\"sub\":\"u{}\",\"jti\":\"t{}\",\"iat\":{issued_s},\"exp\":{},\
             \"conn\":{conn},\"roles\":{},\"permissions\":{{\"allow\":{},\"deny\":{}}}",
            person.user.unwrap_or_default(),
            token.unwrap_or_default(),
            expires_s.unwrap_or_default().saturating_sub(LEEWAY_S),
            list(roles),
            grants(true),
            grants(false),
        );
        if !channels.is_empty() {
            claims.push_str(&format!(",\"channels\":{}", list(names)));
        }
        if fault == Fault::ForChannel {
            claims.push_str(&format!(",\"channel\":\"{}\"", setup.channels[0].name));
        }
        claims.push('}');
        let (signer, kid) = match fault {
            Fault::Forged => (&self.forger, None),
            _ if by_keys => (&self.published, Some("k1")),
            _ => (&self.secret, None),
        };
        signer.sign(kid, &claims).expect("it signs")
    }
}

impl Client {
    /// Shows a token, good or bad, or asks who it is.
    pub(super) fn auth(&mut self, scene: &mut Scene) {
        let Some(link) = &mut self.link else { return };
        if !scene.setup.access {
            return;
        }
        let dice = &mut *scene.dice;
        use Fault::{Expired, ForChannel, Forged, Good, Missing, OtherIssuer, OtherUser};
        let mut fault = dice.pick(&[
            Good,
            Good,
            Good,
            Good,
            Good,
            Expired,
            Forged,
            OtherIssuer,
            ForChannel,
            OtherUser,
            Missing,
        ]);
        if fault == OtherUser && (scene.setup.users < 2 || link.found.person.user.is_none()) {
            fault = Good;
        }
        let by_keys = fault == Good && dice.chance(150);
        let unix_s = scene.mint.unix_ms.get() / 1000;
        let lives = match fault {
            Expired => None,
            _ => Some(dice.pick(&[1, 2, 5, 20, 100_000, 100_000])),
        };
        let same = dice.chance(600);
        let mut person = link.last_found().person.as_ref().clone();
        if person.user.is_none() || !same {
            // Whoever it is, it is somebody from then on, and always the same.
            let user = link.found.person.user.unwrap_or(link.conn % scene.setup.users);
            let roles = (0..2).filter(|_| dice.chance(300)).collect();
            let groups = scene.setup.groups.len();
            let grants = if dice.chance(150) { vec![line(dice, groups)] } else { Vec::new() };
            person = Person { user: Some(user), roles, sends: dice.chance(300), grants };
        }
        if fault == OtherUser {
            person.user = person.user.map(|user| (user + 1) % scene.setup.users);
        }
        let channels = match dice.below(6) {
            0 if scene.setup.empty == 0 => vec![dice.below(scene.setup.channels.len())],
            _ => Vec::new(),
        };
        let found = Found {
            person: person.into(),
            admitted: true,
            token: Some(scene.mint.number(dice)),
            issued_s: unix_s.saturating_sub(dice.below(4) as u64),
            expires_s: Some(
                lives.map_or(unix_s.saturating_sub(1), |lives| unix_s + lives + LEEWAY_S),
            ),
            channels,
            ..Found::default()
        };
        if fault == Missing {
            scene.judge.ledgers.doubt(link.conn);
            link.refusable |= link.found.must_authenticate;
            return self.command(Want::Auth { shown: None }, None, "", scene);
        }
        let token = scene.mint.sign(&found, link.conn, fault, by_keys, scene.setup);
        let at_once = found.channels.clone();
        let found = link.found.is_said_of(found);
        // The application was asked about nobody.
        let unasked = link.found.asked && link.found.person.user.is_none();
        let more = format!(",\"token\":\"{token}\"");
        if scene.setup.message_bytes_max < 4096
            && more.len() + 100 > scene.setup.message_bytes_max as usize
        {
            return;
        }
        let safe = fault == Good
            && !unasked
            && (!link.found.asked || link.found.expires_s.is_none())
            && !by_keys
            && lives == Some(100_000)
            && scene.setup.revocations + scene.setup.wall_clocks == 0;
        link.refusable |= !safe;
        if !safe {
            scene.judge.ledgers.doubt(link.conn);
        }
        link.doubt_nameless();
        let may_fail = by_keys && !scene.mint.keys_known;
        let want = match fault {
            // Somebody may set the clock on the wall back before it is looked at.
            Good | Expired if !unasked => {
                let shown = scene.judge.ledgers.show(link.conn, found.clone(), may_fail);
                link.shown.push(found.clone());
                Want::Auth { shown: Some(shown) }
            }
            _ => Want::Auth { shown: Some(BAD) },
        };
        self.command(want, None, &more, scene);
        let at_once = self.at_once(at_once, scene.setup);
        if let (Some(link), Good | Expired, false) = (&mut self.link, fault, unasked) {
            for channel in at_once {
                link.expect_at_once(channel, self.speaks);
                scene.judge.rooms.is_tried(channel);
            }
        }
    }
}

impl Found {
    /// Who it is with another token: what the application has said of it stays.
    fn is_said_of(&self, token: Found) -> Found {
        if !self.asked {
            return token;
        }
        let mut person = token.person.as_ref().clone();
        person.roles.extend(&self.person.roles);
        person.grants.extend(self.person.grants.iter().cloned());
        person.sends |= self.person.sends;
        let mut channels = token.channels.clone();
        channels.extend(&self.channels);
        // When that ends its shard knows by its own clock.
        Found { person: person.into(), channels, ..token }
    }
}

impl Link {
    /// What it may is about to change: a subscribe without an id that has no answer yet may be refused after all, which
    /// nobody could tell from other refusals.
    fn doubt_nameless(&mut self) {
        let nameless = |pending: &&Pending| {
            pending.id.is_none() && matches!(pending.want, Want::Subscribe { .. })
        };
        for channel in self.pending.iter().filter(nameless).filter_map(|pending| pending.channel) {
            if let Some(own) = self.channels.get_mut(&channel) {
                own.intent = Intent::Maybe;
            }
        }
    }

    /// Everybody that it may be, or may have been.
    pub(super) fn founds(&self) -> impl Iterator<Item = &Found> {
        std::iter::once(&self.found).chain(&self.shown)
    }

    fn last_found(&self) -> &Found {
        self.shown.last().unwrap_or(&self.found)
    }
}
