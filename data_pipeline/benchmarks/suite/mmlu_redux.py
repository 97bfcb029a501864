"""MMLU-Redux 2.0: 100 questions of each of MMLU's 57 subjects, looked through by people (Gema et al., 2024); here the
5,700 without those in which they found a mistake."""

from collections.abc import Mapping

from data_pipeline.benchmarks.benchmark import DataFile, Row
from data_pipeline.benchmarks.suite import columns
from data_pipeline.benchmarks.suite.choices import Choices

SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology",
    "college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics",
    "computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics",
    "formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_european_history", "high_school_geography", "high_school_government_and_politics",
    "high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics",
    "high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history",
    "human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies", "machine_learning",
    "management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios",
    "nutrition", "philosophy", "prehistory", "professional_accounting", "professional_law", "professional_medicine",
    "professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy", "virology",
    "world_religions",
)  # fmt: skip


class MMLURedux(Choices):
    name, title, published = "mmlu_redux", "MMLU-Redux", "mmlu_redux"
    files: Mapping[str, DataFile] = {"mmlu_redux": DataFile("edinburgh-dawg/mmlu-redux-2.0", SUBJECTS)}

    def wanted(self, row: Row, where: str) -> bool:
        return columns.text(row, where, "error_type") == "ok"
