"""`tf.train.Example` as a protobuf message, described here because its own package is a gigabyte.

Field names and numbers are those of tensorflow/core/example/{example,feature}.proto, so the bytes are the same.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def _example_class() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="tf_example.proto", package="tensorflow", syntax="proto3")

    def message(name: str) -> descriptor_pb2.DescriptorProto:
        return file.message_type.add(name=name)

    for name, kind in (("BytesList", "BYTES"), ("FloatList", "FLOAT"), ("Int64List", "INT64")):
        value = message(name).field.add(name="value", number=1, label=field.LABEL_REPEATED)
        value.type = getattr(field, f"TYPE_{kind}")
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), start=1
    ):
        part = feature.field.add(name=name, number=number, label=field.LABEL_OPTIONAL, oneof_index=0)
        part.type, part.type_name = field.TYPE_MESSAGE, f".tensorflow.{kind}"
    features = message("Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
    value = entry.field.add(name="value", number=2, label=field.LABEL_OPTIONAL, type=field.TYPE_MESSAGE)
    value.type_name = ".tensorflow.Feature"
    entries = features.field.add(name="feature", number=1, label=field.LABEL_REPEATED, type=field.TYPE_MESSAGE)
    entries.type_name = ".tensorflow.Features.FeatureEntry"
    inner = message("Example").field.add(name="features", number=1, label=field.LABEL_OPTIONAL)
    inner.type, inner.type_name = field.TYPE_MESSAGE, ".tensorflow.Features"

    # A pool of its own: in the default pool the names would clash with tensorflow's, where both are imported.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


Example = _example_class()
