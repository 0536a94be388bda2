"""Writing and reading of results: images, tables and their descriptions, as BIDS derivatives."""

from pnet_jax.outputs.atlas import AtlasKey, atlas_label, check_atlas, network_atlas
from pnet_jax.outputs.atomic import atomic_path, check_writable
from pnet_jax.outputs.bids import output_stem, page_name, parcel_centroids, parcel_rows, save, save_edges, scan_label
from pnet_jax.outputs.cohort import write_cohort
from pnet_jax.outputs.cohort_collect import collect, load_cohort
from pnet_jax.outputs.cohort_export import export
from pnet_jax.outputs.columns import result_columns
from pnet_jax.outputs.conversion import cohort_dataset, cohort_frame, edges_frame, edges_graph, network_dataset, plot_network
from pnet_jax.outputs.finding import find_networks, find_results
from pnet_jax.outputs.images import atlas_image, labels_image, location_image, parcel_colors, probabilities_image
from pnet_jax.outputs.loading import load_network
from pnet_jax.outputs.maps import Maps, load_maps
from pnet_jax.outputs.status import read_record, read_records, write_record, write_table
from pnet_jax.outputs.surfaces import label_gifti, labels_surface

__all__ = [
    "AtlasKey",
    "Maps",
    "atlas_image",
    "atlas_label",
    "atomic_path",
    "check_atlas",
    "check_writable",
    "cohort_dataset",
    "cohort_frame",
    "collect",
    "edges_frame",
    "edges_graph",
    "export",
    "find_networks",
    "find_results",
    "label_gifti",
    "labels_image",
    "labels_surface",
    "load_cohort",
    "load_maps",
    "load_network",
    "location_image",
    "network_atlas",
    "network_dataset",
    "output_stem",
    "page_name",
    "parcel_centroids",
    "parcel_colors",
    "parcel_rows",
    "plot_network",
    "probabilities_image",
    "read_record",
    "read_records",
    "result_columns",
    "save",
    "save_edges",
    "scan_label",
    "write_cohort",
    "write_record",
    "write_table",
]
