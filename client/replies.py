"""What a reply says besides the worker's answer: that there was an error of Flower's own, and of it the number alone.

Flower puts an exception's text into it, which may quote a path or a patient. The text is in the message and once more
in the object that follows, whose SHA-256 is the message's name; so both are made anew.
"""

import logging

from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest

log = logging.getLogger(__name__)


def silence(reply: PushMessagesRequest) -> list[PushObjectRequest]:
    """Take the text out of each error in ``reply``, and return what uploads those errors as they are then."""
    uploads = []
    for said, tree in zip(reply.messages_list, reply.message_object_trees, strict=True):
        if not said.HasField("error"):
            continue
        log.error("Flower reports error %d, its text stays here: %s", said.error.code, said.error.reason)
        said.error.reason = ""
        error = message_from_proto(said)
        said.metadata.message_id = error.object_id
        tree.CopyFrom(ObjectTree(object_id=error.object_id))
        upload = PushObjectRequest(node=reply.node, run_id=said.metadata.run_id, object_id=error.object_id)
        upload.object_content = error.deflate()
        uploads.append(upload)
    return uploads
