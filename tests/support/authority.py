"""A timestamp authority of one's own (RFC 3161), whose clock the tests set."""

import hashlib
import secrets
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

from asn1crypto import algos, cms, tsp
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """
    Attributes:
        root (`x509.Certificate`): What a reader trusts; `pem` is the same for a file.
        now (`datetime`, *optional*): What the clock says; the real time by default.
        refuse (`bool`): Answer with a rejection.
    """

    def __init__(self, name: str = "Test"):
        self.now: datetime | None = None
        self.refuse = False
        root_key, self._key = (rsa.generate_private_key(65537, 2048) for _ in range(2))
        long_ago, far = datetime(2019, 1, 1, tzinfo=UTC), datetime(2049, 1, 1, tzinfo=UTC)

        def build(subject: str, issuer: str, key, ca: bool) -> x509.CertificateBuilder:
            return (
                x509.CertificateBuilder()
                .subject_name(_name(subject))
                .issuer_name(_name(issuer))
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(long_ago)
                .not_valid_after(far)
                .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            )

        # Certificates are found by name, so two authorities never share one.
        root_name = f"{name} {secrets.token_hex(4)} Root"
        self.root = build(root_name, root_name, root_key, True).sign(root_key, hashes.SHA256())
        stamping = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
        leaf = build(f"{name} TSA", root_name, self._key, False).add_extension(stamping, critical=True)
        leaf = leaf.add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        leaf = leaf.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False
        )
        self.leaf = leaf.sign(root_key, hashes.SHA256())
        self.pem = self.root.public_bytes(serialization.Encoding.PEM)

    def token(self, message: bytes, moment: datetime | None = None) -> bytes:
        """A response over `message`, without a nonce."""
        imprint = {"hash_algorithm": {"algorithm": "sha512"}, "hashed_message": hashlib.sha512(message).digest()}
        return self._answer(tsp.MessageImprint(imprint), None, moment)

    def reply(self, query: bytes) -> bytes:
        if self.refuse:
            status = tsp.PKIStatusInfo({"status": 2}).dump()  # a rejection has no token
            return bytes([0x30, len(status)]) + status
        request = tsp.TimeStampReq.load(query)
        return self._answer(request["message_imprint"], request["nonce"].native, None)

    def _answer(self, imprint: tsp.MessageImprint, nonce: int | None, moment: datetime | None) -> bytes:
        info = {
            "version": "v1",
            "policy": "1.2.3.4.1",
            "message_imprint": imprint,
            "serial_number": secrets.randbits(63),
            "gen_time": (moment or self.now or datetime.now(UTC)).replace(microsecond=0),
        }
        content = tsp.TSTInfo(info | ({} if nonce is None else {"nonce": nonce}))
        leaf = asn1_x509.Certificate.load(self.leaf.public_bytes(serialization.Encoding.DER))
        signing = tsp.SigningCertificateV2({"certs": [{"cert_hash": hashlib.sha256(leaf.dump()).digest()}]})
        attributes = cms.CMSAttributes(
            [
                {"type": "content_type", "values": ["tst_info"]},
                {"type": "message_digest", "values": [hashlib.sha256(content.dump()).digest()]},
                {"type": "signing_certificate_v2", "values": [signing]},
            ]
        )
        signature = self._key.sign(attributes.untag().dump(), padding.PKCS1v15(), hashes.SHA256())
        signer = {
            "version": "v1",
            "sid": cms.SignerIdentifier(
                "issuer_and_serial_number", {"issuer": leaf.issuer, "serial_number": leaf.serial_number}
            ),
            "digest_algorithm": {"algorithm": "sha256"},
            "signed_attrs": attributes,
            "signature_algorithm": algos.SignedDigestAlgorithm({"algorithm": "sha256_rsa"}),
            "signature": signature,
        }
        signed = {
            "version": "v3",
            "digest_algorithms": [{"algorithm": "sha256"}],
            "encap_content_info": {"content_type": "tst_info", "content": cms.ParsableOctetString(content.dump())},
            "certificates": [leaf],
            "signer_infos": [signer],
        }
        token = cms.ContentInfo({"content_type": "signed_data", "content": cms.SignedData(signed)})
        return tsp.TimeStampResp({"status": {"status": 0}, "time_stamp_token": token}).dump()


class AuthorityServer:
    """Serves an [`Authority`] over HTTP on the loopback interface; a context manager that gives its address."""

    def __init__(self, authority: Authority):
        self.authority = authority

    def __enter__(self) -> str:
        authority = self.authority

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                answer = authority.reply(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Type", "application/timestamp-reply")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}/tsr"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
