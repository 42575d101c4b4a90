use super::*;

const NONCE: [u8; 16] = [1; 16];
const STAND: Stand = Stand { recv: 10, fin: false, limit: 100 };

fn known() -> Known {
    Known { id: PipeId([7; 16]), secret: Secret([8; 32]), instance: [9; 16] }
}

fn resume(epoch: u64) -> (Asking, Greeting) {
    Asking::begin(NONCE, epoch, &Want::Resume(known()), None)
}

/// A resume up to the server's claim, with the client waiting for the welcome.
fn claim(epoch: u64) -> (Asking, Claim) {
    let (mut asking, hello) = resume(epoch);
    let mut answering = Answering::new([9; 16]);
    let Ok(Answered::Challenge(_, id, challenge)) = answering.step(hello, [2; 16]) else {
        panic!("a resume")
    };
    assert_eq!(id, known().id);
    assert_eq!(asking.step(Greeting::Challenge(challenge)), Ok(Asked::StandStill));
    let proof = asking.prove(STAND);
    let Ok(Answered::Claim(claim)) = answering.step(proof, [3; 16]) else { panic!("a proof") };
    (asking, claim)
}

fn welcome(claim: &Claim, secret: &Secret) -> Welcome {
    let stand = Stand { recv: 4, fin: true, limit: 50 };
    Welcome {
        proto: PROTO,
        instance: [9; 16],
        id: claim.id(),
        epoch: claim.epoch(),
        grace: None,
        window: 1,
        stand,
        tag: claim.answer(secret, &stand),
        secret: None,
    }
}

#[test]
fn both_ends_show_that_they_know_the_secret() {
    let (mut asking, claim) = claim(3);
    assert!(claim.holds(&known().secret));
    assert!(!claim.holds(&Secret([0; 32])));
    assert_eq!((claim.epoch(), claim.stand()), (3, STAND));
    let welcome = welcome(&claim, &known().secret);
    assert_eq!(asking.step(Greeting::Welcome(welcome.clone())), Ok(Asked::Welcome(welcome)));
}

#[test]
fn a_version_that_was_not_offered_is_refused() {
    let (mut asking, claim) = claim(3);
    let newer = Welcome { proto: PROTO + 1, ..welcome(&claim, &known().secret) };
    let end = asking.step(Greeting::Welcome(newer)).expect_err("nobody offered it");
    assert_eq!((end.code, end.reason.contains("version 2")), (Ending::Protocol, true), "{end}");
}

#[test]
fn a_server_that_does_not_know_the_secret_gets_nothing() {
    let (mut asking, claim) = claim(3);
    let forged = welcome(&claim, &Secret([0; 32]));
    assert_eq!(asking.step(Greeting::Welcome(forged)).map_err(|end| end.code), Err(Ending::Protocol));
}

#[test]
fn a_recorded_proof_is_worth_nothing_against_a_new_nonce() {
    let (mut asking, hello) = resume(2);
    let mut first = Answering::new([9; 16]);
    let Ok(Answered::Challenge(_, _, challenge)) = first.step(hello.clone(), [2; 16]) else {
        panic!("a resume")
    };
    asking.step(Greeting::Challenge(challenge)).expect("in order");
    let recorded = asking.prove(STAND);
    let mut second = Answering::new([9; 16]);
    second.step(hello, [5; 16]).expect("the recording begins well");
    let Ok(Answered::Claim(claim)) = second.step(recorded, [6; 16]) else { panic!("a proof") };
    assert!(!claim.holds(&known().secret));
}

#[test]
fn a_proof_for_one_pipe_is_worth_nothing_for_another() {
    let (mut asking, _) = resume(2);
    let hello = Hello {
        proto_min: 1,
        proto_max: 1,
        nonce: NONCE,
        auth: None,
        wish: Wish::Resume { id: PipeId([0; 16]) },
    };
    let mut answering = Answering::new([9; 16]);
    let Ok(Answered::Challenge(_, _, challenge)) = answering.step(Greeting::Hello(hello), [2; 16]) else {
        panic!("a resume")
    };
    asking.step(Greeting::Challenge(challenge)).expect("in order");
    let proof = asking.prove(STAND);
    let Ok(Answered::Claim(claim)) = answering.step(proof, [3; 16]) else { panic!("a proof") };
    assert!(!claim.holds(&known().secret));
}

#[test]
fn each_state_takes_one_message_and_everything_else_ends_the_attempt() {
    let (_, hello) = resume(1);
    let (_, proof) = (0, Greeting::Proof(Proof { epoch: 1, stand: STAND, tag: [0; 32] }));
    let challenge = Greeting::Challenge(Challenge { instance: [0; 16], nonce: [0; 16] });
    for early in [proof.clone(), challenge.clone()] {
        assert_eq!(
            Answering::new([9; 16]).step(early, [2; 16]).map_err(|end| end.code),
            Err(Ending::Protocol)
        );
    }
    let mut challenged = Answering::new([9; 16]);
    challenged.step(hello.clone(), [2; 16]).expect("a resume");
    assert_eq!(challenged.step(hello.clone(), [2; 16]).map_err(|end| end.code), Err(Ending::Protocol));

    let (mut asking, _) = resume(1);
    assert_eq!(asking.step(proof).map_err(|end| end.code), Err(Ending::Protocol));
    let (_, claim) = claim(1);
    let early = Greeting::Welcome(welcome(&claim, &known().secret));
    assert_eq!(
        asking.step(early).map_err(|end| end.code),
        Err(Ending::Protocol),
        "no welcome without a proof"
    );
    assert_eq!(asking.step(challenge.clone()), Ok(Asked::StandStill));
    assert_eq!(asking.step(challenge).map_err(|end| end.code), Err(Ending::Protocol), "challenged once");
}

#[test]
fn a_refusal_is_an_answer_in_every_state() {
    let refuse = Refuse {
        instance: [9; 16],
        end: End::new(Ending::Limit, "too many pipes"),
        retriable: true,
        retry_after: Duration::from_secs(1),
    };
    let (mut asking, _) = resume(1);
    assert_eq!(asking.step(Greeting::Refuse(refuse.clone())), Ok(Asked::Refused(refuse)));
}

#[test]
fn a_version_nobody_here_speaks_is_refused_with_both_ranges() {
    let (_, Greeting::Hello(hello)) = resume(1) else { panic!("begins with HELLO") };
    let newer = Hello { proto_min: 2, proto_max: 3, ..hello.clone() };
    let end = Answering::new([9; 16]).step(Greeting::Hello(newer), [0; 16]).expect_err("too new");
    assert_eq!(end.reason, "the client speaks versions 2 to 3, this server speaks 1");
    let older_too = Hello { proto_min: 0, proto_max: 9, ..hello };
    assert!(Answering::new([9; 16]).step(Greeting::Hello(older_too), [0; 16]).is_ok());
}

#[test]
fn a_new_pipe_needs_its_secret_and_its_epoch() {
    let want = Want::New { target: "host:22".into(), limit: 9 };
    let (_, claim) = claim(1);
    let good = Welcome { secret: Some(Secret([1; 32])), ..welcome(&claim, &known().secret) };
    for (bad, why) in [
        (Welcome { secret: None, ..good.clone() }, "no secret"),
        (Welcome { epoch: 2, ..good.clone() }, "the epoch of another dial"),
    ] {
        let (mut asking, _) = Asking::begin(NONCE, 1, &want, Some("token"));
        assert!(asking.step(Greeting::Welcome(bad)).is_err(), "{why}");
    }
    let (mut asking, hello) = Asking::begin(NONCE, 1, &want, Some("token"));
    assert!(!format!("{hello:?}").contains("token"), "a credential does not print");
    assert_eq!(asking.step(Greeting::Welcome(good.clone())), Ok(Asked::Welcome(good)));
}
